"""What waits in a worker's queues counts as backlog, so it is of units that are its own."""

from __future__ import annotations

from pipeline.core.delivery import Delivery
from pipeline.worker.dispatch import Dispatch
from pipeline.worker.parts import Clock
from tests.unit.test_core_unit import NOW, receive, source_record, unit


def test_nothing_of_a_unit_that_was_let_go_stays_in_the_queues() -> None:
    """A subscription that is paused takes nothing out of them: it would fetch no more for what it still owns."""
    gone, kept = unit(), unit()
    dispatch = Dispatch(Clock(lambda: NOW), lambda _unit: None)
    ready, resumed = dispatch.ready, dispatch.resumed
    for offset, each in ((0, gone), (0, kept), (2, gone)):
        waiting = receive(each, source_record(offset), source_record(offset + 1))
        resumed.append(waiting.popleft())
        ready.extend(waiting)
    dispatch.paused = True
    dispatch.drop(gone)
    assert dispatch.ready is ready, "executors hold it"
    assert dispatch.resumed is resumed
    assert len(dispatch) == 2

    def units(queue: object) -> list[object]:
        return [delivery.unit for delivery in queue if isinstance(delivery, Delivery)]  # type: ignore[attr-defined]

    assert units(ready) == units(resumed) == [kept]
