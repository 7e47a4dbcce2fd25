"""The recorder: what each block of an agent's run becomes, with and without asyncio, when it goes well and when it doesn't."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import types
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.emit.recorder import AsyncRecorder, Recorder, RecorderOptions, SyncRecorder
from pipeline.emit.stats import Leftover
from pipeline.model.errors import BufferFull, ConfigurationError, PublishError
from pipeline.model.events import Message, RunCancelled, RunCompleted, RunEvent, RunFailed, ToolCall, ToolResult


class Kept:
    """A publisher that keeps what it is given."""

    def __init__(self) -> None:
        self.events: list[RunEvent] = []
        self.traces: list[str | None] = []
        self.full = False
        self.closed_with: float | None = None

    def publish(self, event: RunEvent, *, traceparent: str | None = None) -> None:
        if self.full:
            raise BufferFull("full")
        self.events.append(event)
        self.traces.append(traceparent)

    async def publish_async(self, event: RunEvent, *, traceparent: str | None = None) -> None:
        await asyncio.sleep(0)
        self.publish(event, traceparent=traceparent)

    async def publish_at_once(self, event: RunEvent, *, traceparent: str | None = None) -> None:
        """As a publisher with room does: the event loop gets no turn."""
        self.publish(event, traceparent=traceparent)

    def offer(self, event: RunEvent, *, traceparent: str | None = None) -> bool:
        self.publish(event, traceparent=traceparent)
        return True

    def close(self, timeout_s: float = 10.0) -> Leftover:
        self.closed_with = timeout_s
        return Leftover()

    @property
    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.events]


@pytest.fixture
def kept() -> Kept:
    return Kept()


def options() -> RecorderOptions:
    """A clock that goes on by 10 ms a look, and ids that count."""
    clock, ids = itertools.count(1_000, 10), itertools.count()
    return RecorderOptions(clock_ms=lambda: next(clock), new_id=lambda: f"id{next(ids)}")


def sync_story(recorder: SyncRecorder) -> None:
    with recorder.run(agent="support", tenant="acme", input="hi") as run:
        run.message("user", "where is my refund?")
        with run.step("look up"):
            with run.model_call("gpt-large", provider="x") as call:
                call.usage(input_tokens=1200, output_tokens=340, cost_usd=0.5)
            with run.tool_call("search", arguments={"q": "refund"}) as tool:
                tool.result({"found": 1})
        run.memory("write", "notes", memory_key="k", content="c", items=1)
        run.approval("requested", "a1", "refund 20")
        run.output("done")


async def async_story(recorder: AsyncRecorder) -> None:
    async with recorder.run(agent="support", tenant="acme", input="hi") as run:
        await run.message("user", "where is my refund?")
        async with run.step("look up"):
            async with run.model_call("gpt-large", provider="x") as call:
                call.usage(input_tokens=1200, output_tokens=340, cost_usd=0.5)
            async with run.tool_call("search", arguments={"q": "refund"}) as tool:
                tool.result({"found": 1})
        await run.memory("write", "notes", memory_key="k", content="c", items=1)
        await run.approval("requested", "a1", "refund 20")
        run.output("done")


def record_sync(kept: Kept) -> None:
    with Recorder(kept, options()) as recorder:
        sync_story(recorder)


def record_async(kept: Kept) -> None:
    async def main() -> None:
        async with Recorder(kept, options()) as recorder:
            await async_story(recorder)

    asyncio.run(main())


@pytest.mark.parametrize("record", [record_sync, record_async])
def test_a_run_becomes_its_events(kept: Kept, record: Callable[[Kept], None]) -> None:
    record(kept)
    assert kept.names == [
        "RunStarted",
        "Message",
        "Step",
        "ModelCall",
        "ToolCall",
        "ToolResult",
        "Step",
        "Memory",
        "Approval",
        "RunCompleted",
    ]
    assert [event.sequence for event in kept.events] == list(range(10))
    assert len({event.event_id for event in kept.events}) == 10
    assert {(event.run_id, event.agent, event.tenant) for event in kept.events} == {("id0", "support", "acme")}
    started, _, step, model, call, result, step_end, memory, _, completed = kept.events
    assert (started.step, step.step, model.step, call.step, result.step, memory.step) == (None, 0, 0, 0, 0, None)
    assert (step.parent_id, model.parent_id, result.parent_id) == (started.event_id, step.event_id, call.event_id)
    assert step_end.parent_id == step.event_id
    assert memory.parent_id == started.event_id
    assert call.arguments == '{"q": "refund"}'  # type: ignore[attr-defined]
    assert isinstance(result, ToolResult)
    assert (result.status, result.content, result.call_id) == ("OK", '{"found": 1}', call.call_id)  # type: ignore[attr-defined]
    assert result.duration_ms > 0
    assert isinstance(completed, RunCompleted)
    totals = (
        completed.steps,
        completed.model_calls,
        completed.tool_calls,
        completed.input_tokens,
        completed.output_tokens,
    )
    assert totals == (1, 1, 1, 1200, 340)
    assert (completed.cost_usd, completed.output) == (0.5, "done")
    assert completed.duration_ms == completed.occurred_at - started.occurred_at
    assert kept.closed_with == 10.0


def test_both_forms_record_the_same() -> None:
    one, other = Kept(), Kept()
    record_sync(one)
    record_async(other)
    assert one.events == other.events


def test_an_exception_is_recorded_and_goes_on(kept: Kept) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        Recorder(kept) as recorder,
        recorder.run(agent="a") as run,
        run.tool_call("divide"),
    ):
        _ = 1 // 0
    assert kept.names == ["RunStarted", "ToolCall", "ToolResult", "RunFailed"]
    result, failed = kept.events[2:]
    assert isinstance(result, ToolResult)
    assert result.status == "ERROR"
    assert result.error is not None
    assert result.error.startswith("ZeroDivisionError: ")
    assert isinstance(failed, RunFailed)
    assert failed.error_class == "ZeroDivisionError"
    assert "division" in failed.error_message
    assert failed.tool_calls == 1


def test_cancelling_the_task_is_recorded_as_cancelled(kept: Kept) -> None:
    async def agent(ready: asyncio.Event) -> None:
        async with Recorder(kept) as recorder, recorder.run(agent="a") as run, run.tool_call("wait"):
            ready.set()
            await asyncio.Event().wait()

    async def main() -> None:
        ready = asyncio.Event()
        task = asyncio.create_task(agent(ready))
        await ready.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert kept.names == ["RunStarted", "ToolCall", "ToolResult", "RunCancelled"]
    assert kept.events[2].status == "CANCELLED"  # type: ignore[attr-defined]
    assert isinstance(kept.events[3], RunCancelled)


def test_a_timeout_of_a_tool_has_its_own_status(kept: Kept) -> None:
    with Recorder(kept) as recorder, recorder.run(agent="a") as run, pytest.raises(TimeoutError), run.tool_call("slow"):
        raise TimeoutError
    assert kept.events[2].status == "TIMEOUT"  # type: ignore[attr-defined]
    assert kept.names[-1] == "RunCompleted"


def test_endings_without_an_exception(kept: Kept) -> None:
    with Recorder(kept) as recorder:
        with recorder.run(agent="a") as run:
            run.fail("Refused", "the policy says no")
        with recorder.run(agent="a") as run:
            run.cancel("enough", cancelled_by="user")
    assert kept.names == ["RunStarted", "RunFailed", "RunStarted", "RunCancelled"]


def test_a_value_that_does_not_fit_names_its_field_and_nothing_is_sent(kept: Kept) -> None:
    with Recorder(kept) as recorder, recorder.run(agent="a") as run:
        sent = len(kept.events)
        with pytest.raises(ValidationError, match="role"):
            run.message("robot", "hello")
        with pytest.raises(ValidationError, match="content"):
            run.message("user", 5)  # type: ignore[arg-type]
        with run.model_call("m") as call:
            with pytest.raises(ValidationError, match="input_tokens"):
                call.usage(input_tokens=-1)
            call.usage(input_tokens=2)
        assert len(kept.events) == sent + 1
        run.message("user", "still numbered without a gap")
    assert [event.sequence for event in kept.events] == list(range(len(kept.events)))
    with pytest.raises(ValidationError, match="agent"), Recorder(kept) as recorder, recorder.run(agent=None):  # type: ignore[arg-type]
        pass
    assert kept.names.count("RunStarted") == 1


def test_trouble_with_recording_never_hides_the_agents_own_exception(kept: Kept) -> None:
    def agent() -> None:
        with Recorder(kept) as recorder, recorder.run(agent="a"):
            kept.full = True
            _ = 1 // 0

    with pytest.raises(ZeroDivisionError) as caught:
        agent()
    assert any("could not record" in note for note in caught.value.__notes__)


def test_a_full_buffer_is_said_when_nothing_else_went_wrong(kept: Kept) -> None:
    with pytest.raises(BufferFull), Recorder(kept) as recorder, recorder.run(agent="a"):
        kept.full = True


class Sulky:
    def __repr__(self) -> str:
        raise RuntimeError("not today")


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize("value", [{(1, 2): "a"}, nested(100_000), [Sulky()], {"a": {b"k": 1}}])
def test_what_json_can_not_hold_is_recorded_as_text_and_does_not_end_the_agents_call(kept: Kept, value: Any) -> None:
    ring: list[Any] = []
    ring.append(ring)
    with Recorder(kept, options()) as recorder, recorder.run(agent="support") as run:
        for each in (value, ring):
            with run.tool_call("search", arguments=each) as tool:
                tool.result(each)
        run.output(value)
    assert kept.names == ["RunStarted", "ToolCall", "ToolResult", "ToolCall", "ToolResult", "RunCompleted"]
    for event in kept.events:
        if isinstance(event, ToolCall):
            json.loads(event.arguments)


def test_exception_texts_that_utf8_can_not_hold(kept: Kept) -> None:
    with pytest.raises(RuntimeError), Recorder(kept) as recorder, recorder.run(agent="a"):
        raise RuntimeError("\ud800" + "x" * 100_000)
    failed = kept.events[-1]
    assert isinstance(failed, RunFailed)
    assert len(failed.error_message.encode()) < 10_000


def test_recording_after_the_end_is_an_error(kept: Kept) -> None:
    with Recorder(kept) as recorder:
        with recorder.run(agent="a") as run:
            pass
        with pytest.raises(PublishError, match="has ended"):
            run.message("user", "too late")


def test_tasks_of_one_run_publish_in_the_order_of_their_numbers(kept: Kept) -> None:
    async def main() -> None:
        async with Recorder(kept) as recorder, recorder.run(agent="a") as run:

            async def one(index: int) -> None:
                async with run.step(f"s{index}"), run.tool_call("t") as tool:
                    await asyncio.sleep(0)
                    tool.result(str(index))

            await asyncio.gather(*(one(index) for index in range(20)))

    asyncio.run(main())
    assert [event.sequence for event in kept.events] == list(range(len(kept.events)))
    by_id = {event.event_id: event for event in kept.events}
    for event in kept.events:
        if isinstance(event, ToolResult):
            assert event.parent_id is not None
            assert by_id[event.parent_id].step == event.step  # a neighbour's step does not leak in


def test_a_run_inside_a_tool_call_stands_on_its_own(kept: Kept) -> None:
    with Recorder(kept) as recorder, recorder.run(agent="outer") as outer, outer.tool_call("delegate"):
        with recorder.run(agent="inner", parent_run_id=outer.run_id) as inner:
            inner.message("user", "x")
        outer.message("user", "y")
    inner_started, inner_message = kept.events[2], kept.events[3]
    assert inner_started.parent_id is None
    assert inner_message.parent_id == inner_started.event_id
    assert kept.events[5].parent_id == kept.events[1].event_id


async def streamed(block: AbstractAsyncContextManager[Any]) -> AsyncGenerator[str, None]:
    async with block:
        yield "a"
        yield "b"


async def begin_and_leave(block: AbstractAsyncContextManager[Any]) -> None:
    """As `async for ... break` does: the event loop closes the generator in a task, and so a context, of its own."""
    stream = streamed(block)
    await anext(stream)
    await asyncio.create_task(stream.aclose())


def test_what_follows_a_generator_that_was_left_is_not_inside_its_step(kept: Kept) -> None:
    async def main() -> None:
        async with Recorder(kept) as recorder, recorder.run(agent="a") as run, run.tool_call("outer"):
            await begin_and_leave(run.step("plan"))
            await run.message("user", "x")
            async with run.step("act"):
                await run.message("user", "y")

    asyncio.run(main())
    _, call, planned, ended, message, acted, inside, *_ = kept.events
    assert (planned.step, ended.parent_id) == (0, planned.event_id)
    assert (message.step, message.parent_id) == (None, call.event_id)
    assert (acted.parent_id, inside.step, inside.parent_id) == (call.event_id, 1, acted.event_id)


def test_a_stream_that_a_step_leaves_open_keeps_nothing_in_the_step(kept: Kept) -> None:
    with Recorder(kept) as recorder, recorder.run(agent="a") as run:

        def stream() -> Iterator[str]:
            with run.model_call("m"), run.step("inner"):
                yield "a"
                yield "b"

        with run.step("plan"):
            left = stream()
            next(left)
        run.message("user", "x")
        with run.step("act"):
            run.message("user", "y")
        assert list(left) == ["b"]
        run.message("user", "z")
    started, planned, inner, planned_end, message, acted, inside, acted_end, inner_end, call, last, _ = kept.events
    assert (inner.parent_id, planned_end.step) == (planned.event_id, 0)
    assert (message.step, message.parent_id) == (None, started.event_id)
    assert (acted.parent_id, inside.step, inside.parent_id) == (started.event_id, 2, acted.event_id)
    assert acted_end.parent_id == acted.event_id
    assert (inner_end.step, inner_end.parent_id) == (1, inner.event_id)  # an end is where its beginning was
    assert (call.step, call.parent_id) == (0, planned.event_id)
    assert (last.step, last.parent_id) == (None, started.event_id)


def test_a_stream_that_is_still_to_be_closed_keeps_nothing_in_the_step_it_began_in(kept: Kept) -> None:
    """Left by `break`: the event loop closes it when it gets to that, after the step's end."""

    async def main() -> None:
        async with Recorder(kept) as recorder, recorder.run(agent="a") as run:
            async with run.step("plan"):
                async for _ in streamed(run.model_call("m")):
                    break
            async with run.tool_call("t"):
                await asyncio.sleep(0.01)
            async with run.step("act"):
                await run.message("user", "y")

    kept.publish_async = kept.publish_at_once  # type: ignore[method-assign]
    asyncio.run(main())
    assert kept.names == [
        *("RunStarted", "Step", "Step", "ToolCall", "ModelCall", "ToolResult"),
        *("Step", "Message", "Step", "RunCompleted"),
    ]
    started, planned, _, call, model, result, acted, inside, *_ = kept.events
    assert (call.step, call.parent_id) == (None, started.event_id)
    assert (model.step, model.parent_id) == (0, planned.event_id)
    assert (result.step, result.parent_id) == (None, call.event_id)
    assert (acted.parent_id, inside.step, inside.parent_id) == (started.event_id, 1, acted.event_id)


def test_a_stream_inside_a_generator_that_was_left_keeps_nothing_in_its_step(kept: Kept) -> None:
    async def main() -> None:
        async with Recorder(kept) as recorder, recorder.run(agent="a") as run:
            inner = streamed(run.tool_call("t"))

            async def agent() -> AsyncGenerator[str, None]:
                async with run.step("plan"):
                    async for text in inner:
                        yield text

            async for _ in agent():
                break
            await asyncio.sleep(0.01)  # the event loop closes the agent; the inner stream is kept
            await run.message("user", "x")
            await inner.aclose()

    asyncio.run(main())
    started, planned, _, ended, message, *_ = kept.events
    assert (ended.parent_id, message.step, message.parent_id) == (planned.event_id, None, started.event_id)


def test_a_tasks_own_step_stays_open_when_the_step_that_started_the_task_ends(kept: Kept) -> None:
    async def main() -> None:
        async with Recorder(kept) as recorder, recorder.run(agent="a") as run:
            begun, go_on = asyncio.Event(), asyncio.Event()

            async def background() -> None:
                async with run.step("background"):
                    begun.set()
                    await go_on.wait()
                    await run.message("user", "x")
                await run.message("user", "y")

            async with run.step("plan"):
                task = asyncio.create_task(background())
                await begun.wait()
            go_on.set()
            await task

    asyncio.run(main())
    started, _, background, _, inside, _, after, _ = kept.events
    assert (inside.step, inside.parent_id) == (1, background.event_id)
    assert (after.step, after.parent_id) == (None, started.event_id)


def test_a_step_begun_before_a_generator_that_was_left_is_closed_stays_open(kept: Kept) -> None:
    async def main() -> None:
        async with Recorder(kept) as recorder, recorder.run(agent="a") as run:
            async for _ in streamed(run.step("plan")):
                break
            async with run.step("act"):
                await asyncio.sleep(0.01)  # the event loop closes the generator
                await run.message("user", "x")

    asyncio.run(main())
    acted = next(event for event in kept.events if getattr(event, "name", None) == "act")
    message = next(event for event in kept.events if isinstance(event, Message))
    assert (message.step, message.parent_id) == (1, acted.event_id)


def test_a_run_in_a_generator_that_was_left_is_no_parent_of_what_follows(kept: Kept) -> None:
    async def main() -> None:
        async with Recorder(kept) as recorder, recorder.run(agent="outer") as outer:
            await begin_and_leave(recorder.run(agent="left"))
            assert recorder.detached("inside").parent_run_id == outer.run_id
        async with Recorder(kept) as recorder:
            await begin_and_leave(recorder.run(agent="left"))
            assert recorder.detached("alone").parent_run_id is None

    asyncio.run(main())


def test_a_step_whose_generator_is_still_to_be_closed_ends_with_its_run(kept: Kept) -> None:
    """A run ends right after its stream was left: the event loop has had no time yet to close that."""

    async def main() -> None:
        async with Recorder(kept) as recorder:
            async with recorder.run(agent="left") as run, run.step("outer"), run.model_call("m"), run.tool_call("t"):
                stream = streamed(run.step("inner"))
                await anext(stream)
            assert recorder.detached("next").parent_run_id is None
            await stream.aclose()

    asyncio.run(main())
    started, outer, call, inner, result, model, ended, last, _ = kept.events
    assert isinstance(last, RunCompleted)
    found = [(event.step, event.parent_id) for event in (call, inner, result, model, ended, last)]
    ids = started.event_id, outer.event_id, call.event_id
    assert found == [(0, ids[1]), (1, ids[2]), (0, ids[2]), (0, ids[1]), (0, ids[1]), (None, ids[0])]


def test_runs_in_generators_that_take_turns_are_each_left_by_their_own_end(kept: Kept) -> None:
    def turns(recorder: SyncRecorder, agent: str) -> Iterator[str]:
        with recorder.run(agent=agent) as run:
            yield run.run_id
            yield run.run_id

    with Recorder(kept) as recorder:
        first, second = turns(recorder, "first"), turns(recorder, "second")
        next(first)
        second_id = next(second)
        assert len(list(first)) == 1
        assert recorder.detached("x").parent_run_id == second_id
        assert len(list(second)) == 1
        assert recorder.detached("y").parent_run_id is None


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_given_traceparent_is_on_every_event(kept: Kept) -> None:
    with Recorder(kept) as recorder, recorder.run(agent="a", traceparent=TRACE) as run:
        run.message("user", "x")
    assert kept.traces == [TRACE] * 3
    with pytest.raises(ConfigurationError, match="traceparent"), Recorder(kept) as recorder:
        recorder.run(agent="a", traceparent="nonsense")


def test_open_telemetrys_current_span_is_used(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    context = types.SimpleNamespace(
        is_valid=True, trace_id=int(TRACE[3:35], 16), span_id=int(TRACE[36:52], 16), trace_flags=1
    )
    span = types.SimpleNamespace(get_span_context=lambda: context)
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", types.SimpleNamespace(get_current_span=lambda: span))
    with Recorder(kept) as recorder, recorder.run(agent="a"):
        pass
    assert kept.traces == [TRACE, TRACE]
    context.is_valid = False
    with Recorder(kept) as recorder, recorder.run(agent="a"):
        pass
    assert kept.traces[2:] == [None, None]
