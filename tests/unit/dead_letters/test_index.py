"""The index: reads only what is new, survives being killed and being asked twice at once, and is built anew when its topic is."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.synthetic_letters import DLQ, RESULTS, START_MS, SyntheticCluster, maker, registered
from pipeline.dead_letters.desk import Desk, Topics
from pipeline.dead_letters.ingest import Ingest
from pipeline.dead_letters.query import Query, Wanted, cursor_of, letters_at
from pipeline.dead_letters.states import STATES, id_of, position_of, state_after
from pipeline.dead_letters.stats import expiry, stats
from pipeline.dead_letters.store import IndexBusy, IndexUnusable, Store, index_path
from pipeline.dead_letters.values import Values
from pipeline.memory.cluster import MemoryCluster
from pipeline.model.cluster import TopicSpec
from pipeline.model.errors import ConfigurationError
from pipeline.replay.results import Result, ResultBatch, encode, record_key

ROOT = Path(__file__).resolve().parents[3]
CODEC = registered()


def ingest(store: Store, cluster: Any) -> Any:
    return Ingest(store, cluster, DLQ, RESULTS, Values(CODEC)).run()


def numbers(store: Store) -> list[tuple[int, int]]:
    return [position_of(n) for n in Query(store.db, DLQ, Wanted()).ids()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return index_path(tmp_path, "127.0.0.1:9092,other:9092", DLQ)


def test_a_command_reads_only_what_is_new(path: Path) -> None:
    cluster, store = SyntheticCluster(maker(CODEC), [100, 50, 0]), Store(path)
    assert ingest(store, cluster).read == 150
    cluster.read = 0
    assert ingest(store, cluster).read == 0
    assert cluster.read == 0, "nothing is new: no record is read"
    cluster.ends = [110, 50, 1]
    assert ingest(store, cluster).read == 11
    assert cluster.read == 12, (
        "the last known record of the partition with news is read again, to see that it is the same"
    )
    assert numbers(store) == [(0, o) for o in range(110)] + [(1, o) for o in range(50)] + [(2, 0)]
    store.close()
    again = Store(path)
    assert ingest(again, cluster).read == 0
    again.close()


def test_the_file_is_the_users_alone(path: Path) -> None:
    Store(path).close()
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("ends", [[40], [100], [140]])
def test_a_topic_that_was_made_anew_is_read_anew(path: Path, ends: list[int]) -> None:
    """Also with as many records or more: the last known one is another. (With exactly as many, once there are more.)"""
    store = Store(path)
    ingest(store, SyntheticCluster(maker(CODEC), [100]))
    other = SyntheticCluster(maker(CODEC, salt=3), ends)
    done = ingest(store, other)
    if ends == [100]:
        other.ends = [101]
        done = ingest(store, other)
    assert "made anew" in done.rebuilt
    assert len(numbers(store)) == other.ends[0]
    keys = {letter.key for letter in letters_at(store.db, [id_of(0, 5)]).values()}
    assert keys == {"run-38"}, "offset 5 with salt 3"
    store.close()


def test_what_retention_deleted_is_gone_and_the_rest_stays(path: Path) -> None:
    cluster, store = SyntheticCluster(maker(CODEC), [100, 10]), Store(path)
    ingest(store, cluster)
    cluster.beginnings = [30, 10]
    assert ingest(store, cluster).rebuilt == ""
    assert numbers(store) == [(0, o) for o in range(30, 100)]
    cluster.beginnings, cluster.ends = [100, 10], [100, 10]
    ingest(store, cluster)
    assert numbers(store) == []
    store.close()


def test_what_retention_deleted_is_gone_also_when_others_died_meanwhile(path: Path) -> None:
    cluster, store = SyntheticCluster(maker(CODEC), [100, 10]), Store(path)
    ingest(store, cluster)
    cluster.beginnings, cluster.ends = [30, 0], [110, 10]
    assert ingest(store, cluster).read == 10
    assert numbers(store) == [(0, o) for o in range(30, 110)] + [(1, o) for o in range(10)]
    store.close()


def test_who_is_about_to_delete_looks_whether_the_topic_is_the_same(path: Path) -> None:
    """Made anew with exactly as many letters: nothing is new, and a list may be late, but not a purge."""
    store = Store(path)
    ingest(store, SyntheticCluster(maker(CODEC), [100, 0]))
    store.db.execute("UPDATE letters SET state = ?", (STATES.index("purged"),))
    other: Any = SyntheticCluster(maker(CODEC, salt=3), [100, 0])
    done = Ingest(store, other, DLQ, RESULTS, Values(CODEC)).run(verify=True)
    assert "made anew" in done.rebuilt
    assert Query(store.db, DLQ, Wanted(states=("open",))).count() == 100
    store.close()


def test_the_longest_topic_name_has_an_index(tmp_path: Path) -> None:
    one, other = "a" * 249, "a" * 248 + "b"
    assert index_path(tmp_path, "b", one) != index_path(tmp_path, "b", other)
    store = Store(index_path(tmp_path, "b", one))
    with store.locked(1.0, "redrive"), store.writing() as db:
        db.execute("INSERT INTO meta VALUES ('a', 'b')")
    store.close()


def test_who_waits_for_another_command_is_told(path: Path) -> None:
    one, other = Store(path), Store(path)
    told: list[str] = []
    other.waiting = lambda: told.append("waits")
    with one.locked(), pytest.raises(IndexBusy), other.locked(0.2):
        pass
    assert told == ["waits"]
    one.close()
    other.close()


def test_another_version_and_a_damaged_file_are_built_anew(path: Path) -> None:
    cluster, store = SyntheticCluster(maker(CODEC), [20]), Store(path)
    ingest(store, cluster)
    store.db.execute("UPDATE meta SET value = '0' WHERE name = 'version'")
    store.close()
    store = Store(path)
    assert numbers(store) == []
    assert ingest(store, cluster).read == 20
    store.close()
    path.write_bytes(b"this is no database at all" * 1_000)
    for tail in ("-wal", "-shm"):
        path.with_name(path.name + tail).unlink(missing_ok=True)
    store = Store(path)
    assert ingest(store, cluster).read == 20
    store.close()


def test_a_file_that_is_damaged_inside_is_named_and_can_be_built_anew(path: Path) -> None:
    cluster: Any = SyntheticCluster(maker(CODEC), [3_000])
    store = Store(path)
    ingest(store, cluster)
    store.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()
    data = bytearray(path.read_bytes())
    data[80_000:-40_000] = b"\xa5" * (len(data) - 120_000)
    path.write_bytes(data)
    with (
        pytest.raises(IndexUnusable, match=r"damaged.*pipeline dlq list --rebuild"),
        Desk(cluster, CODEC, Topics(DLQ), path) as desk,
    ):
        desk.query(Wanted(text="nowhere")).count()
    with Desk(cluster, CODEC, Topics(DLQ), path) as desk:
        assert desk.rebuild().read == 3_000
        assert desk.query(Wanted()).count() == 3_000


def test_a_folder_that_can_not_be_used_is_named_with_the_setting(tmp_path: Path) -> None:
    (tmp_path / "dead-letters").write_text("a file where the folder should be")
    with pytest.raises(ConfigurationError, match=r"dead-letters.*PIPELINE_STATE_DIR"):
        Store(index_path(tmp_path, "b", DLQ))


def test_a_failed_batch_leaves_nothing_of_itself(path: Path) -> None:
    good = maker(CODEC)

    def make(partition: int, offset: int) -> Any:
        if offset == 3_500:
            raise RuntimeError("the disk of the test is full")
        return good(partition, offset)

    cluster, store = SyntheticCluster(make, [6_000]), Store(path)
    with pytest.raises(RuntimeError):
        ingest(store, cluster)
    assert len(numbers(store)) == 2_000, "whole batches only"
    cluster.make = good
    assert ingest(store, cluster).read == 4_000
    assert len(numbers(store)) == 6_000
    store.close()


CHILD = """
import sys, time
from pathlib import Path
from pipeline.dead_letters.ingest import Ingest
from pipeline.dead_letters.store import Store
from pipeline.dead_letters.values import Values
from bench.synthetic_letters import *
cluster = SyntheticCluster(maker(), [int(sys.argv[2])] * 2)
cluster.before_poll = lambda: time.sleep(0.02)
print("ready", flush=True)
sys.stdin.readline()
print(Ingest(Store(Path(sys.argv[1])), cluster, DLQ, RESULTS, Values(registered())).run().read, flush=True)
"""


def child(path: Path, records: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), str(records)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_at_once_read_everything_once(path: Path) -> None:
    processes = [child(path, 15_000) for _ in range(2)]
    try:
        for process in processes:
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()
        read = [int(process.communicate(timeout=60)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert sorted(read) == [0, 30_000], "one waits for the other, and finds everything done"
    store = Store(path)
    assert len(numbers(store)) == 30_000
    store.close()


def test_killed_while_reading_the_next_goes_on_there(path: Path) -> None:
    Store(path).close()
    process = child(path, 100_000)
    try:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
        watch = sqlite3.connect(path, timeout=10)
        deadline = time.monotonic() + 60
        while watch.execute("SELECT count(*) FROM letters").fetchone()[0] < 6_000:
            assert time.monotonic() < deadline
            assert process.poll() is None, "it was too quick to be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        watch.close()
    finally:
        process.kill()
        process.wait()
    store, cluster = Store(path), SyntheticCluster(maker(), [100_000] * 2)
    before = len(numbers(store))
    assert 6_000 <= before < 200_000
    cluster.ends = [max(30_000, before)] * 2
    assert ingest(store, cluster).read == sum(cluster.ends) - before
    assert len(numbers(store)) == sum(cluster.ends)
    indexes = {row[0] for row in store.db.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
    assert {"letters_by_state", "letters_by_time", "letters_by_group"} <= indexes
    store.close()


# -- states


def test_states_follow_outcomes() -> None:
    assert state_after("written", "open") == "redriven"
    assert state_after("failed", "open") == "open"
    assert state_after("loop_capped", "redriven") == "redriven"
    assert state_after("written", "purged") == "purged", "purged is for good"
    assert state_after("written", "cancelled") == "redriven"
    assert state_after("converted", "cancelled") == "converted"
    assert {state_after(o, "open") for o in ("edited", "purged", "cancelled", "converted")} == set(STATES[2:])


@pytest.mark.parametrize("late", ["cancelled", "converted", "edited"])
def test_what_was_sent_already_is_never_told_to_be_given_up(late: str) -> None:
    """Two at once: who cancels a letter that somebody else has just redriven must not make it look as if no copy was sent."""
    assert state_after(late, "redriven") == "redriven"


def memory(records: int) -> tuple[MemoryCluster, Any]:
    cluster = MemoryCluster("dead-letters")
    cluster.admin().create_topics([TopicSpec(DLQ, 2), TopicSpec(RESULTS, 3)])
    make, producer = maker(CODEC), cluster.producer()
    for offset in range(records):
        m = make(0, offset)
        producer.send(DLQ, m.key(), m.value(), m.headers(), partition=0)
    producer.flush(10)
    return cluster, producer


def result(producer: Any, results: list[Result], topic: str = DLQ, partition: int = 0, **more: Any) -> None:
    known = {"at_ms": int(time.time() * 1000), **more}
    batch = ResultBatch("rp-1", "redrive", topic, partition, "ana", results=results, **known)
    producer.send(RESULTS, record_key(topic, partition), encode(batch))
    producer.flush(10)


def test_results_become_states_also_when_everything_is_read_again() -> None:
    cluster, producer = memory(6)
    store = Store(None)
    ingest(store, cluster)
    result(producer, [Result(0, "written", 0, 7), Result(1, "failed")], errors={1: "too large"})
    result(producer, [Result(2, "purged")], topic="another.dlq")
    result(producer, [Result(3, "cancelled"), Result(99, "purged"), Result(4, "written", 0, 9)])
    producer.send(RESULTS, record_key(DLQ, 0), b"not JSON")
    producer.send(RESULTS, record_key(DLQ, 0), json.dumps({"results": 1}).encode())
    result(producer, [Result(4, "purged")])
    result(producer, [Result(4, "written", 0, 10)])
    wanted = ["redriven", "open", "open", "cancelled", "purged", "open"]
    for rebuild in (False, True):
        if rebuild:
            store.clear()
        ingest(store, cluster)
        letters = letters_at(store.db, [id_of(0, o) for o in range(6)])
        assert [letter.state for _, letter in sorted(letters.items())] == wanted
        assert store.db.execute("SELECT error FROM results WHERE letter = 1").fetchone() == ("too large",)
        assert store.db.execute("SELECT count(*) FROM results WHERE letter = 4").fetchone() == (3,)


def test_what_was_done_to_the_last_letter_is_not_forgotten_when_others_come() -> None:
    """The last known record is read again to see whether the topic is the same one."""
    cluster, producer = memory(2)
    store = Store(None)
    ingest(store, cluster)
    result(producer, [Result(0, "cancelled"), Result(1, "written", 0, 1)])
    ingest(store, cluster)
    producer.send(DLQ, b"k", b"{}", [], partition=0)
    producer.flush(10)
    assert ingest(store, cluster).read == 1
    letters = letters_at(store.db, [id_of(0, o) for o in range(3)])
    assert [letter.state for _, letter in sorted(letters.items())] == ["cancelled", "redriven", "open"]


def test_results_of_an_earlier_topic_of_that_name_are_not_of_its_letters() -> None:
    """The results topic outlives a dead-letter topic that is deleted and made again: its offsets begin at 0 once more."""
    cluster, producer = memory(4)
    now = int(time.time() * 1000)
    result(producer, [Result(0, "purged"), Result(1, "written", 0, 1)], at_ms=now - 3_600_000)
    result(producer, [Result(2, "cancelled")], at_ms=now - 60_000)
    store = Store(None)
    ingest(store, cluster)
    letters = letters_at(store.db, [id_of(0, o) for o in range(4)])
    states = [letter.state for _, letter in sorted(letters.items())]
    assert states == ["open", "open", "cancelled", "open"], "an operator's clock may be a little late"
    assert store.db.execute("SELECT count(*) FROM results").fetchone() == (1,)


@pytest.mark.parametrize(
    "forged",
    [
        {"partition": 10**30},
        {"at_ms": 10**40},
        {"at_ms": float("inf")},
        {"partition": float("inf")},
        {"results": [[0, "purged", 10**30, -1]]},
        {"results": [[0, "purged", -1, 10**30]]},
    ],
)
def test_a_forged_result_changes_nothing_and_stops_nobody(forged: dict[str, Any]) -> None:
    cluster, producer = memory(2)
    good = {
        "v": 1,
        "plan": "p",
        "action": "purge",
        "topic": DLQ,
        "partition": 0,
        "who": "eve",
        "at_ms": int(time.time() * 1000),
    }
    producer.send(
        RESULTS, record_key(DLQ, 0), json.dumps({**good, "results": [[0, "purged", -1, -1]], **forged}).encode()
    )
    result(producer, [Result(1, "cancelled")])
    store = Store(None)
    ingest(store, cluster)
    letters = letters_at(store.db, [id_of(0, 0), id_of(0, 1)])
    assert [letter.state for _, letter in sorted(letters.items())] == ["open", "cancelled"]


def test_an_edited_letter_is_edited_also_when_its_result_was_never_written() -> None:
    """Killed between the append and the result: the new version's own header says whose place it takes."""
    cluster, producer = memory(2)
    producer.send(DLQ, b"run-0", b"{}", [("pl.edited_from", b"0/1"), ("pl.attempt", b"1")], partition=0)
    producer.send(DLQ, b"run-0", b"{}", [("pl.edited_from", b"junk")], partition=0)
    producer.flush(10)
    store = Store(None)
    ingest(store, cluster)
    letters = letters_at(store.db, [id_of(0, o) for o in range(4)])
    assert [letters[id_of(0, o)].state for o in range(4)] == ["open", "edited", "open", "open"]
    assert letters[2].edited_from == (0, 1)
    assert letters[3].edited_from is None


def test_a_topic_that_is_missing_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere.dlq does not exist"):
        Ingest(Store(None), memory(0)[0], "nowhere.dlq", RESULTS, Values(CODEC)).run()


# -- asking


def test_pages_are_stable_while_others_come() -> None:
    cluster, store = SyntheticCluster(maker(CODEC), [120, 80]), Store(None)
    ingest(store, cluster)
    query = Query(store.db, DLQ, Wanted())
    first = query.page(60)
    cluster.ends = [150, 90]
    ingest(store, cluster)
    seen, cursor = list(first.letters), first.cursor
    while cursor:
        page = Query(store.db, DLQ, Wanted()).page(60, cursor)
        seen += page.letters
        cursor = page.cursor
    places = [(letter.partition, letter.offset) for letter in seen]
    assert len(places) == len(set(places)) == 200, "none twice, none left out, and nothing that came later"
    assert [letter.died_ms for letter in seen] == sorted((letter.died_ms for letter in seen), reverse=True)


def test_times_that_are_not_known_have_a_cursor_too() -> None:
    cluster, producer = memory(3)
    store = Store(None)
    ingest(store, cluster)
    store.db.execute("UPDATE letters SET ts = -1")
    page = Query(store.db, DLQ, Wanted()).page(2)
    assert [x.offset for x in page.letters] == [2, 1]
    assert [x.offset for x in Query(store.db, DLQ, Wanted()).page(2, page.cursor).letters] == [0]
    assert producer
    assert cursor_of(page.letters[0]).startswith("x-")


@pytest.mark.parametrize(
    "cursor", ["", "x", "1-2", "1-2-3-4", "'; DROP TABLE letters", "9" * 40 + "-1-1", "x-1", "-1-1-1", "1-²-3"]
)
def test_a_cursor_that_is_none_is_refused(cursor: str) -> None:
    store = Store(None)
    if not cursor:
        assert Query(store.db, DLQ, Wanted()).page(2).letters == ()
        return
    with pytest.raises(ConfigurationError, match="--after"):
        Query(store.db, DLQ, Wanted()).page(2, cursor)


def test_stats_group_what_differs_only_in_details() -> None:
    cluster, store = SyntheticCluster(maker(CODEC), [1_000, 1_000]), Store(None)
    ingest(store, cluster)
    found = stats(store.db, Query(store.db, DLQ, Wanted(states=("open",))), START_MS + 1_800_000)
    assert found.total == 2_000
    assert {group.name for group in found.errors} == {"model call <n> of <id> failed after <n> s"}
    assert len(found.errors) == 12, "four classes and three types"
    assert sum(group.count for group in found.errors) == 2_000
    assert [(group.name, group.count) for group in found.types] == [("agent.run.ToolCall", 2_000)]
    assert sum(group.count for group in found.tenants) == 2_000
    assert [group.count for group in found.ages] == [2_000]
    none = stats(store.db, Query(store.db, DLQ, Wanted(tenants=("nobody",))), START_MS)
    assert (none.total, none.errors, none.oldest_ms) == (0, (), None)


def test_open_dead_letters_near_the_end_of_their_retention_are_an_alarm() -> None:
    cluster, store = SyntheticCluster(maker(CODEC), [100]), Store(None)
    ingest(store, cluster)
    day = 86_400_000
    assert expiry(store.db, DLQ, -1, START_MS + 10**12) is None, "never deleted"
    assert expiry(store.db, DLQ, 30 * day, START_MS + 20 * day) is None
    alarm = expiry(store.db, DLQ, 30 * day, START_MS + 29 * day)
    assert alarm is not None
    assert alarm.soon == 100
    assert alarm.left_ms == day
    assert "the oldest is deleted in 1d" in alarm.sentence
    gone = expiry(store.db, DLQ, 30 * day, START_MS + 31 * day)
    assert gone is not None
    assert "any moment" in gone.sentence
    store.db.execute("UPDATE letters SET state = 1")
    assert expiry(store.db, DLQ, 30 * day, START_MS + 29 * day) is None, "what is not open may expire"


def test_answers_take_well_under_a_second_on_a_hundred_thousand(path: Path) -> None:
    """A tenth of what bench/dead_letters.py asks; a question that walks through everything must stay below a tenth of its second
    on a quiet machine, and below a second on any."""
    cluster, store = SyntheticCluster(maker(CODEC), [25_000] * 4), Store(path)
    assert ingest(store, cluster).read == 100_000
    for wanted in (Wanted(), Wanted(tenants=("nobody",)), Wanted(text="no such text"), Wanted(states=("purged",))):
        began = time.perf_counter()
        Query(store.db, DLQ, wanted).page(50)
        assert time.perf_counter() - began < 1.0, wanted
    store.close()
