"""The simulated fleet and the behaviours: decided by seed and event alone."""

from __future__ import annotations

from collections import Counter

from pipeline.emit.fleet import FAILS_FOR_EVER, POISON_BYTES, Behaviour, behaviour_of, simulate
from pipeline.model.events import RunCompleted, RunEvent, RunStarted, ToolCall

NOW_MS = 1_700_000_000_000


def tool_call(tool: str, arguments: str = "{}", event_id: str = "e") -> ToolCall:
    return ToolCall(
        event_id=event_id,
        run_id="r",
        sequence=0,
        occurred_at=1,
        agent="a",
        tenant="t",
        tool=tool,
        call_id="c",
        arguments=arguments,
    )


def test_the_same_seed_gives_the_same_fleet() -> None:
    first, again = list(simulate(7, 50, NOW_MS)), list(simulate(7, 50, NOW_MS))
    assert first == again
    assert first != list(simulate(8, 50, NOW_MS))


def test_runs_are_interleaved_and_each_is_whole() -> None:
    runs: dict[bytes, list[RunEvent]] = {}
    switches, last = 0, b""
    for record in simulate(1, 100, NOW_MS):
        switches += record.key != last
        last = record.key
        if isinstance(record.value, RunEvent):
            assert record.value.run_id.encode() == record.key
            assert record.behaviour == behaviour_of(record.value)
            runs.setdefault(record.key, []).append(record.value)
    assert len(runs) == 100
    assert switches > 500
    for events in runs.values():
        assert isinstance(events[0], RunStarted)
        assert [event.sequence for event in events] == list(range(len(events)))
        assert [event.occurred_at for event in events] == sorted(event.occurred_at for event in events)
    assert any(isinstance(events[-1], RunCompleted) for events in runs.values())


def test_every_kind_of_trouble_is_in_it() -> None:
    kinds = Counter(
        "garbage" if record.value == POISON_BYTES else "poison" if record.behaviour.poison else "flaky" if record.behaviour.fails
        else "slow" if record.behaviour.sleep_ms else "plain"
        for record in simulate(3, 500, NOW_MS)
    )  # fmt: skip
    assert min(kinds[kind] for kind in ("garbage", "poison", "flaky", "slow")) > 0
    assert kinds["plain"] > 0.8 * kinds.total()


def test_the_fleets_tools_say_what_they_do() -> None:
    assert behaviour_of(tool_call("flaky_search", '{"fails": 3}')) == Behaviour(fails=3)
    assert behaviour_of(tool_call("slow_browser", '{"sleep_ms": 50}')) == Behaviour(sleep_ms=50)
    assert behaviour_of(tool_call("poison_parser")) == Behaviour(fails=FAILS_FOR_EVER, poison=True)
    for odd in ("[]", "nonsense", '{"fails": "x"}', '{"fails": -5}', "[" * 100_000):
        assert behaviour_of(tool_call("flaky_search", odd)).fails in (0, 1)


def test_other_tool_calls_behave_by_their_event_id() -> None:
    found = Counter(behaviour_of(tool_call("search", event_id=f"e{n}")) for n in range(10_000))
    assert 300 < found[Behaviour(fails=1)] < 500
    assert 100 < found[Behaviour(fails=2)] < 200
    assert 25 < found[Behaviour(fails=FAILS_FOR_EVER, poison=True)] < 80
    assert behaviour_of("not an event") == Behaviour()
