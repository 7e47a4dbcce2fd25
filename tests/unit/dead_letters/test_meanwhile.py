"""What others do to dead letters while somebody edits one, or waits for a canary."""

from __future__ import annotations

import json

import pytest

from pipeline.dead_letters import editing
from pipeline.dead_letters.acting import record
from pipeline.model.errors import ConfigurationError
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
