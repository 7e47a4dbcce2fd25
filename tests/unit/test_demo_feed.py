"""What the demo publishes and when, and when its result counts as good."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from pipeline.demo.accounting import GroupAccount, SourceAccount
from pipeline.demo.feed import Feed, Load, identities, imported, simulated
from pipeline.demo.report import KillReport, Rates, Report
from pipeline.demo.screen import GroupView, PlainScreen, View, summary_lines
from pipeline.emit.stats import Leftover
from pipeline.model.errors import ClusterError, ConfigurationError, PublishError
from pipeline.model.events import RunEvent


def test_simulated_load_is_the_same_for_the_same_seed_and_every_record_has_its_own_id() -> None:
    load = simulated(50, 3, 0)
    assert load == simulated(50, 3, 0)
    assert load != simulated(50, 4, 0)
    names = identities(load)
    assert len({event_id for _, event_id in names}) == len(names) == len(load.records)


def transcripts(path: Path, runs: int, extra: tuple[str, ...] = ()) -> Path:
    lines = [
        json.dumps({"task_id": n, "messages": [{"role": "user", "content": f"{n}/{m}"} for m in range(5)]})
        for n in range(runs)
    ]
    path.write_text("\n".join([*lines, *extra]))
    return path


def test_imported_runs_are_mixed_and_each_stays_in_order(tmp_path: Path) -> None:
    load = imported(transcripts(tmp_path / "t.jsonl", 30, ("broken",)), "t", None, seed=1)
    assert load.runs == 30
    assert [item.line for item in load.skipped] == [31]
    by_run: dict[bytes, list[int]] = defaultdict(list)
    for record in load.records:
        assert isinstance(record.value, RunEvent)
        by_run[record.key].append(record.value.sequence)
    assert len(by_run) == 30
    assert all(found == sorted(found) for found in by_run.values())
    changes = sum(a.key != b.key for a, b in zip(load.records, load.records[1:], strict=False))
    assert changes > 60, "one run after the other would be 29"
    assert imported(tmp_path / "t.jsonl", "t", 7, seed=1).runs == 7


def test_a_file_without_a_run_says_why(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    (tmp_path / "text").write_text("Dear reader,")
    with pytest.raises(ConfigurationError, match="it is empty"):
        imported(tmp_path / "empty", "t", None, 1)
    with pytest.raises(ConfigurationError, match="line 1: not JSON"):
        imported(tmp_path / "text", "t", None, 1)


class FakePublisher:
    """Takes everything; `refuse_at` is the number of the record it refuses."""

    def __init__(self, refuse_at: int | None = None, undelivered: int = 0) -> None:
        self.ids: list[str] = []
        self._refuse_at = refuse_at
        self._undelivered = undelivered

    def publish(self, event: RunEvent) -> None:
        if len(self.ids) == self._refuse_at:
            raise ClusterError("no more")
        self.ids.append(event.event_id)

    def publish_record(self, _topic: str, _key: bytes, _value: bytes, headers: list[tuple[str, bytes]]) -> None:
        self.ids.append(headers[0][1].decode())

    def flush(self, _timeout_s: float) -> Leftover:
        return Leftover(self._undelivered)


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def feed(publisher: Any, load: Load, hold_at: int) -> Feed:
    return Feed(publisher, "events", load, rate=50_000, hold_at=hold_at)


def test_feed_holds_until_told_to_go_on_and_publishes_everything_in_order() -> None:
    load, publisher = simulated(20, 1, 0), FakePublisher()
    going = feed(publisher, load, hold_at=50)
    going.start()
    until(lambda: going.holding, "it never held")
    assert publisher.ids == [event_id for _, event_id in identities(load)][:50]
    assert not going.done
    going.go_on()
    until(lambda: going.done, "it never ended")
    assert publisher.ids == [event_id for _, event_id in identities(load)]
    going.check()
    going.stop()


@pytest.mark.parametrize(
    ("publisher", "error"),
    [(FakePublisher(refuse_at=5), ClusterError), (FakePublisher(undelivered=3), PublishError)],
)
def test_feed_tells_what_went_wrong(publisher: FakePublisher, error: type[Exception]) -> None:
    going = feed(publisher, simulated(5, 1, 0), hold_at=1_000)
    going.start()
    until(lambda: going.error is not None, "it did not fail")
    with pytest.raises(error):
        going.check()
    assert not going.done
    going.stop()


# -- the verdict

GOOD = Report(
    runs=1,
    skipped=0,
    source=SourceAccount(10, 0, 0, 0, 0),
    groups=(
        GroupAccount("billing", processed=9, dead_lettered=1, retried={"1s": 2}),
        GroupAccount("audit", processed=10),
    ),
    kill=KillReport("demo-billing-0", 1, 2.0, 4, 3, 6.5),
    rates=Rates(1.0, 1, 1.0, 1),
    seconds=1.0,
    timed_out=False,
)


def test_a_good_report_adds_up() -> None:
    assert GOOD.ok
    result = GOOD.as_dict()
    assert (result["published"], result["processed"], result["dead_lettered"]) == (10, 19, 1)
    assert result["retried"] == {"1s": 2}
    assert "Every record is accounted for" in summary_lines(GOOD)[-1]
    json.dumps(result)


@pytest.mark.parametrize("name", ["lost", "duplicates", "out_of_order", "altered", "strays", "unsettled"])
def test_anything_wrong_in_a_group_is_not_good(name: str) -> None:
    bad = replace(GOOD, groups=(GOOD.groups[0], GroupAccount("audit", **{name: 1})))
    assert not bad.ok
    assert bad.as_dict()[name] == 1
    assert "NOT GOOD: audit: 1 " in summary_lines(bad)[-1]


@pytest.mark.parametrize(
    "bad",
    [
        replace(GOOD, source=SourceAccount(9, 1, 0, 0, 0)),
        replace(GOOD, source=SourceAccount(10, 0, 1, 0, 0)),
        replace(GOOD, source=SourceAccount(10, 0, 0, 1, 0)),
        replace(GOOD, source=SourceAccount(10, 0, 0, 0, 1)),
        replace(GOOD, timed_out=True),
        replace(GOOD, kill=None),
        replace(GOOD, kill=KillReport("w", 1, 2.0, 4, 3, None)),
        replace(GOOD, kill=KillReport("w", 1, 2.0, 4, 3, -1)),
        replace(GOOD, kill=KillReport("w", 1, 2.0, 4, 3, 15.1)),
    ],
)
def test_anything_else_wrong_is_not_good_either(bad: Report) -> None:
    assert not bad.ok
    assert len(bad.problems()) == 1
    assert "NOT GOOD" in summary_lines(bad)[-1]


def test_plain_screen_repeats_nothing() -> None:
    out = StringIO()
    screen = PlainScreen(out)
    view = View(10, 5, [GroupView("billing", 3, 1, [("1s", 2)], [("demo-billing-0", True)])], 1.5)
    screen.show(view)
    screen.show(view)
    assert out.getvalue() == "    1.5 s  published 5/10; billing 3 processed, 2 in tiers so far, 1 dead\n"
