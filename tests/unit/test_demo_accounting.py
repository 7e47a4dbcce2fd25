"""The demo's account: clean where all is well, and it catches everything that is planted."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from pipeline.core.progress import Progress
from pipeline.demo.accounting import (
    CopyFact,
    EndingFact,
    GroupAccount,
    GroupFacts,
    Kill,
    SourceFact,
    account_of_group,
    account_of_source,
    in_flight,
    per_second,
    takeover_ms,
)

SOURCE, TIER = "events", "events.billing.retry.1s"
KILL_MS = 50_000


def source(partitions: int = 2, per_partition: int = 6, keys: int = 2) -> list[SourceFact]:
    """Records 100 ms apart, keys taking turns within a partition."""
    return [
        SourceFact(p, o, b"key-%d-%d" % (p, o % keys), f"event-{p}-{o}", hash((p, o)), 1_000 + 100 * o)
        for p in range(partitions)
        for o in range(per_partition)
    ]


def done(record: SourceFact, place: int, at_ms: int, worker: str = "w0") -> EndingFact:
    return EndingFact(record.partition, record.offset, False, place, at_ms, worker)


def dead(record: SourceFact, place: int, at_ms: int) -> EndingFact:
    return EndingFact(record.partition, record.offset, True, place, at_ms, "", record.key, record.digest)


def copy(record: SourceFact, hop: int, attempt: int, place: int = 0, tier: str = "1s") -> CopyFact:
    return CopyFact(tier, TIER, record.partition, place, record.offset, hop, attempt, 2_000, record.key, record.digest)


def healthy(records: list[SourceFact]) -> GroupFacts:
    """Every record processed once, in order."""
    facts = GroupFacts("billing", ("1s", "2s"))
    facts.endings = [done(record, n, record.at_ms + 10) for n, record in enumerate(records)]
    return facts


def kill(durable: dict[tuple[str, int], Progress] | None = None, group: str = "billing") -> Kill:
    return Kill(group, "w0", frozenset({0}), KILL_MS, SOURCE, durable)


def test_a_run_without_fault_is_clean() -> None:
    records = source()
    account = account_of_group(records, healthy(records))
    assert account.clean
    assert (account.processed, account.dead_lettered, account.lost) == (len(records), 0, 0)


def test_nothing_read_back_means_everything_is_lost() -> None:
    records = source()
    account = account_of_group(records, GroupFacts("billing", ()))
    assert account.lost == len(records)
    assert not account.clean


def test_each_record_whose_ending_is_taken_away_is_lost() -> None:
    records = source()
    for victim in range(len(records)):
        facts = healthy(records)
        del facts.endings[victim]
        account = account_of_group(records, facts)
        assert (account.lost, account.processed) == (1, len(records) - 1)
        assert not account.clean


def test_each_second_ending_is_a_duplicate() -> None:
    records = source()
    for victim in records:
        for again in (done(victim, 99, 9_000), dead(victim, 99, 9_000)):
            facts = healthy(records)
            facts.endings.append(again)
            account = account_of_group(records, facts)
            assert (account.duplicates, account.redelivered) == (1, 0)
            assert not account.clean


def test_each_swap_within_a_key_is_disorder() -> None:
    records = source(partitions=1)
    by_key = {(a.offset, b.offset) for a in records for b in records if a.key == b.key and a.offset < b.offset}
    assert by_key
    for first, second in by_key:
        facts = healthy(records)
        one, other = facts.endings[first], facts.endings[second]
        facts.endings[first] = replace(one, place=other.place, at_ms=other.at_ms)
        facts.endings[second] = replace(other, place=one.place, at_ms=one.at_ms)
        account = account_of_group(records, facts)
        assert account.out_of_order
        assert not account.clean


def test_swaps_between_keys_are_no_disorder() -> None:
    records = source(partitions=1)
    facts = healthy(records)
    one, other = facts.endings[0], facts.endings[1]
    facts.endings[0] = replace(one, place=other.place, at_ms=other.at_ms)
    facts.endings[1] = replace(other, place=one.place, at_ms=one.at_ms)
    assert account_of_group(records, facts).clean


def test_disorder_within_one_millisecond_shows_in_the_offsets() -> None:
    records = source(partitions=1, keys=1, per_partition=2)
    facts = GroupFacts("billing", ())
    facts.endings = [done(records[0], 1, 5_000), done(records[1], 0, 5_000)]
    assert account_of_group(records, facts).out_of_order == 1


def test_a_dead_letter_after_its_successor_is_disorder() -> None:
    records = source(partitions=1, keys=1, per_partition=2)
    facts = GroupFacts("billing", ())
    facts.endings = [dead(records[0], 0, 7_000), done(records[1], 0, 6_000)]
    assert account_of_group(records, facts).out_of_order == 1
    assert account_of_group(records, facts, clock_tolerance_ms=1_000).out_of_order == 0
    facts.endings = [dead(records[0], 0, 6_000), done(records[1], 0, 6_000)]
    assert account_of_group(records, facts).clean


def test_the_first_effect_counts_for_the_order() -> None:
    """After a crash 0 and 1 are done again: 0 after 1 the second time round is not a disorder, but two explained endings."""
    records = source(partitions=1, keys=1, per_partition=2)
    facts = healthy(records)
    facts.endings += [done(r, 10 + r.offset, KILL_MS + 6_000 + r.offset, "w1") for r in records]
    account = account_of_group(records, facts, kill())
    assert (account.out_of_order, account.redelivered, account.duplicates) == (0, 2, 0)


def test_dead_letters_are_counted_apart_and_must_be_the_original_bytes() -> None:
    records = source()
    facts = healthy(records)
    facts.endings[3] = dead(records[3], 0, facts.endings[3].at_ms)
    account = account_of_group(records, facts)
    assert (account.processed, account.dead_lettered) == (len(records) - 1, 1)
    assert account.clean
    for spoiled in (replace(facts.endings[3], digest=1), replace(facts.endings[3], key=b"other")):
        facts.endings[3] = spoiled
        assert account_of_group(records, facts).altered == 1
        assert not account_of_group(records, facts).clean


def test_copies_in_tiers_must_be_the_original_bytes() -> None:
    records = source()
    facts = healthy(records)
    facts.copies = [copy(records[0], 1, 1)]
    assert account_of_group(records, facts).clean
    facts.copies = [replace(facts.copies[0], digest=5)]
    assert account_of_group(records, facts).altered == 1


def test_endings_and_copies_of_nothing_are_strays() -> None:
    records = source()
    facts = healthy(records)
    facts.endings.append(EndingFact(0, 999, False, 50, 9_000, "w0"))
    assert account_of_group(records, facts).strays == 1
    facts = healthy(records)
    facts.copies.append(CopyFact("1s", TIER, 7, 0, 0, 1, 1, 2_000, None, 0))
    assert account_of_group(records, facts).strays == 1


def test_unsettled_offsets_are_not_clean() -> None:
    records = source()
    facts = healthy(records)
    facts.unsettled = 1
    assert not account_of_group(records, facts).clean


# -- what the kill explains


def twice(at_ms: int = KILL_MS - 100, worker: str = "w0") -> tuple[list[SourceFact], GroupFacts]:
    """Record 5 of partition 0 ended by `worker`, and again by w1 after the kill."""
    records = source()
    facts = healthy(records)
    facts.endings[5] = done(records[5], 5, at_ms, worker)
    facts.endings.append(done(records[5], 90, KILL_MS + 7_000, "w1"))
    return records, facts


def test_the_kill_explains_what_no_commit_had_covered() -> None:
    records, facts = twice()
    for durable in (
        None,
        {},
        {(SOURCE, 0): Progress(5, 5)},
        {(SOURCE, 0): Progress(2, 6, (2, 5))},
    ):
        account = account_of_group(records, facts, kill(durable))
        assert (account.redelivered, account.duplicates) == (1, 0)
        assert account.clean


@pytest.mark.parametrize("durable", [Progress(6, 6), Progress(2, 6, (2,))])
def test_what_was_committed_must_not_run_again(durable: Progress) -> None:
    records, facts = twice()
    account = account_of_group(records, facts, kill({(SOURCE, 0): durable}))
    assert (account.redelivered, account.duplicates) == (0, 1)


def test_a_copy_in_a_tier_that_was_not_committed_explains_it_too() -> None:
    records, facts = twice()
    facts.copies = [copy(records[5], 1, 1, place=3)]
    settled = Progress(6, 6)
    account = account_of_group(records, facts, kill({(SOURCE, 0): settled, (TIER, 0): Progress(3, 3)}))
    assert account.clean
    account = account_of_group(records, facts, kill({(SOURCE, 0): settled, (TIER, 0): Progress(4, 4)}))
    assert account.duplicates == 1


def test_the_kill_does_not_explain_what_it_had_no_part_in() -> None:
    records, facts = twice(worker="w1")
    assert account_of_group(records, facts, kill()).duplicates == 1, "the survivor did it twice"
    records, facts = twice(at_ms=KILL_MS + 2_000)
    assert account_of_group(records, facts, kill()).duplicates == 1, "it ended after the kill"
    records, facts = twice()
    assert account_of_group(records, facts, kill(group="audit")).duplicates == 1, "the kill was in another group"
    elsewhere = replace(kill(), partitions=frozenset({1}))
    assert account_of_group(records, facts, elsewhere).duplicates == 1, "another worker's partition"
    facts.endings.append(done(records[5], 91, KILL_MS + 8_000, "w1"))
    account = account_of_group(records, facts, kill())
    assert (account.redelivered, account.duplicates) == (1, 1), "one kill, one redelivery"


# -- tiers


def test_retries_and_waiting_successors_are_told_apart() -> None:
    records = source()
    facts = healthy(records)
    facts.copies = [
        copy(records[0], 1, 1, tier="1s"),  # failed once
        copy(records[0], 2, 2, tier="2s"),  # failed again
        copy(records[2], 1, 0, tier="1s"),  # waits behind it
        copy(records[2], 2, 0, tier="2s"),
        copy(records[2], 3, 1, tier="1s"),  # ran, and failed itself
        copy(records[2], 3, 1, place=9, tier="1s"),  # the same hand-off by two owners
    ]
    account = account_of_group(records, facts)
    assert account.retried == {"1s": 2, "2s": 1}
    assert account.waited == {"1s": 1, "2s": 1}


# -- the source topic


def given(records: list[SourceFact]) -> list[tuple[bytes, str]]:
    return [(record.key or b"", record.event_id) for record in records]


def test_the_source_is_compared_with_what_was_published() -> None:
    records = source()
    assert account_of_source(given(records), records).clean
    assert account_of_source(given(records), records[1:]).missing == 1
    assert account_of_source(given(records), [*records, records[0]]).duplicates == 1
    assert account_of_source(given(records)[1:], records).strays == 1
    swapped = [records[2], records[1], records[0], *records[3:]]
    assert account_of_source(given(records), swapped).out_of_order == 1


# -- how long it took


def test_takeover_is_measured_by_the_last_partition_that_went_on() -> None:
    records = [replace(record, at_ms=KILL_MS - 500) for record in source(partitions=3)]
    both = replace(kill(), partitions=frozenset({0, 1}))
    facts = GroupFacts("billing", ())
    facts.endings = [done(records[0], 0, KILL_MS - 10)]
    assert in_flight(records, facts, both) == 11
    assert takeover_ms(records, facts, both) == -1
    facts.endings.append(done(records[0], 1, KILL_MS + 5, "w0"))
    assert takeover_ms(records, facts, both) == -1, "the killed worker's last bytes are no sign of life"
    facts.endings.append(done(records[1], 2, KILL_MS + 4_000, "w1"))
    assert takeover_ms(records, facts, both) == -1, "partition 1 still waits"
    facts.copies.append(replace(copy(records[7], 1, 1), at_ms=KILL_MS + 6_000))
    assert takeover_ms(records, facts, both) == 6_000


def test_takeover_counts_from_the_arrival_of_something_to_do() -> None:
    records = [SourceFact(0, 0, b"k", "e", 1, KILL_MS + 20_000)]
    facts = GroupFacts("billing", ())
    facts.endings = [done(records[0], 0, KILL_MS + 20_100, "w1")]
    assert takeover_ms(records, facts, kill()) == 100
    assert takeover_ms([], facts, kill()) is None


def test_rates() -> None:
    assert per_second([]) == (0.0, 0)
    average, busiest = per_second([1_000, 1_100, 1_200, 2_000, 3_000])
    assert average == pytest.approx(2.5)
    assert busiest == 3


# -- against a naive reading of random histories


def naive(records: list[SourceFact], facts: GroupFacts) -> GroupAccount:
    """Quadratic, straight from the definitions, without a kill."""
    account = GroupAccount("billing")
    first = {}
    for record in records:
        own = [e for e in facts.endings if (e.partition, e.origin) == (record.partition, record.offset)]
        if not own:
            account.lost += 1
            continue
        account.duplicates += len(own) - 1
        first[record] = min(own, key=lambda e: (e.at_ms, e.place))
    for record, ending in first.items():
        before = [e for r, e in first.items() if r.key == record.key and r.offset < record.offset]
        wrong = any(e.at_ms > ending.at_ms or (e.dead == ending.dead and e.place > ending.place) for e in before)
        account.out_of_order += wrong
    return account


@pytest.mark.parametrize("seed", range(200))
def test_random_histories_agree_with_the_naive_account(seed: int) -> None:
    dice = random.Random(seed)
    records = source(partitions=2, per_partition=dice.randrange(1, 12), keys=dice.randrange(1, 4))
    facts = GroupFacts("billing", ())
    clock = 5_000
    pending = [r for r in records for _ in range(dice.choice((0, 1, 1, 1, 1, 2)))]
    if dice.random() < 0.5:
        dice.shuffle(pending)
    for place, record in enumerate(pending):
        clock += dice.choice((0, 0, 1, 5))
        facts.endings.append(dead(record, place, clock) if dice.random() < 0.2 else done(record, place, clock))
    mine, expected = account_of_group(records, facts), naive(records, facts)
    assert (mine.lost, mine.duplicates, mine.out_of_order) == (
        expected.lost,
        expected.duplicates,
        expected.out_of_order,
    )
