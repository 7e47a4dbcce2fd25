"""What others do to dead letters while somebody edits one, or waits for a canary."""

from __future__ import annotations

import json

import pytest

from pipeline.dead_letters import converting, editing, marking
from pipeline.dead_letters.acting import record
from pipeline.model.errors import ConfigurationError
from pipeline.model.topics import TASKS_TOPIC
from tests.unit.dead_letters.test_actions import ANA, Place, now


@pytest.mark.parametrize("outcome", ["written", "edited", "purged", "converted"])
def test_an_edit_of_a_letter_that_something_else_was_done_about_meanwhile_appends_nothing(outcome: str) -> None:
    """An editor may be open for long. What was sent back meanwhile would go out twice, once as it was and once as it was edited."""
    place = Place(1)
    editable = editing.open_for_edit(place.desk, 0)
    value = json.loads(editable.text)
    edited = editing.check_edit(editable, json.dumps({**value, "tenant": "beta"}))
    record(place.another(), ANA, "rp-1", "redrive", {0: (outcome, 0, 0)}, now())
    with pytest.raises(ConfigurationError, match="0:0 can't be edited"):
        editing.apply_edit(place.desk, editable, edited, ANA, now())
    assert len(place.states()) == 1


def test_what_was_redriven_meanwhile_is_no_task_for_somebody_and_not_told_as_cancelled() -> None:
    """While somebody was asked whether to go on."""
    place = Place(2)
    late = place.another()
    record(place.desk, ANA, "rp-1", "redrive", {0: ("written", 0, 0)}, now())
    done = converting.convert(late, [0], ANA, "ana", "book it by hand", now())
    assert (done.counts, done.left_out) == ({"converted": 0}, {"redriven already": 1})
    assert place.records(TASKS_TOPIC) == []
    record(place.desk, ANA, "rp-2", "redrive", {1: ("written", 0, 0)}, now())
    done = marking.cancel(late, [1], ANA, now())
    assert (done.counts, done.left_out) == ({"cancelled": 0}, {"redriven already": 1})
