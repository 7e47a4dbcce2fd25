"""What a new owner believes of a store: the newest entry of each key, and nothing that a worker wrote which was taken for dead."""

from __future__ import annotations

from pipeline.core.progress import Progress
from pipeline.core.store_scan import STORE, Floor, StoreScan
from pipeline.model.cluster import Headers
from pipeline.model.headers import STORE_EPOCH

KEY = b"j/a"


def by(epoch: int) -> Headers:
    return [(STORE_EPOCH, str(epoch).encode())]


def scan(fence: int = 100, epoch: int = 2, owner_fence: int | None = 3) -> StoreScan:
    fences = {} if owner_fence is None else {STORE: owner_fence}
    return StoreScan("s", Progress(0, 0, epoch=epoch, fences=fences), 0, fence)


def test_the_newest_entry_of_a_key_counts_and_a_tombstone_ends_it() -> None:
    found = scan()
    for offset, (key, value) in enumerate([(KEY, b"1"), (b"j/b", b"1"), (KEY, b"2"), (b"j/b", None)]):
        found.observe(offset, key, value, by(2))
    assert found.entries == {KEY: b"2"}
    assert not found.strangers


def test_it_is_complete_at_the_fence_and_sees_nothing_from_behind_it() -> None:
    found = scan(fence=2)
    found.observe(0, KEY, b"1", by(2))
    assert not found.complete
    found.observe(1, KEY, b"2", by(2))
    assert found.complete
    found.observe(2, KEY, b"3", by(2))
    assert found.entries == {KEY: b"2"}
    assert scan(fence=0).complete
    gap = scan(fence=9)
    gap.reached(9)
    assert gap.complete


def test_a_lower_epoch_past_the_owners_fence_is_a_strangers() -> None:
    found = scan(owner_fence=1)
    found.observe(0, KEY, b"true", by(1))
    found.observe(1, KEY, b"late", by(1))
    found.observe(2, b"j/new", b"late", by(1))
    assert found.entries == {KEY: b"true"}
    assert list(found.strangers) == [KEY, b"j/new"]


def test_a_lower_epoch_behind_a_higher_one_is_a_strangers_whoever_fenced_it() -> None:
    found = scan(epoch=9, owner_fence=50)
    found.observe(0, KEY, b"true", by(2))
    found.observe(1, b"j/b", b"x", by(3))
    found.observe(2, KEY, None, by(2))
    assert found.entries[KEY] == b"true"
    assert list(found.strangers) == [KEY]
    found.observe(3, KEY, b"again", by(3))
    assert found.entries[KEY] == b"again"
    assert not found.strangers, "its owner wrote behind the stranger"


def test_epochs_go_on_above_what_the_store_has_seen() -> None:
    """The group's offsets can expire, the store does not: starting over, the next owner would be taken for a stranger."""
    found = scan(epoch=0, owner_fence=None)
    found.observe(0, KEY, b"1", by(41))
    assert found.epoch == 41
    assert found.entries == {KEY: b"1"}


def test_records_that_are_not_a_queues_count_as_nobodys() -> None:
    found = scan()
    found.observe(0, None, b"1", None)
    found.observe(1, KEY, b"1", [(STORE_EPOCH, b"x" * 40)])
    found.observe(2, b"j/\xff", b"1", None)
    found.observe(3, b"other", b"1", by(9))
    assert found.entries == {KEY: b"1"}


def floored(at: int, epoch: int, begin: int = 0, fence: int = 100) -> StoreScan:
    return StoreScan("s", Progress(0, 0, epoch=epoch, marks=Floor(at, epoch).marks()), begin, fence)


def test_it_is_read_from_its_floor() -> None:
    found = floored(10, 3)
    assert (found.at, found.begin, found.floor) == (10, 10, Floor(10, 3))
    found.observe(9, KEY, b"below", by(3))
    found.observe(10, b"j/b", b"1", by(3))
    assert found.entries == {b"j/b": b"1"}
    assert floored(10, 3, begin=50).at == 50, "its log begins further on"
    assert floored(100, 3).complete, "nothing was written since"


def test_behind_the_floor_a_lower_epoch_than_its_own_is_a_strangers() -> None:
    found = floored(10, 3)
    found.observe(10, KEY, b"late", by(2))
    found.observe(11, b"j/b", b"true", by(3))
    assert found.entries == {b"j/b": b"true"}
    assert list(found.strangers) == [KEY]
    assert floored(10, 3).epoch == 3, "the next owner is above it, though it wrote nothing since"


def test_a_store_that_was_made_anew_has_no_floor() -> None:
    found = floored(101, 3)
    assert (found.at, found.floor, found.epoch) == (0, Floor(), 0)
    assert not Floor().marks()
