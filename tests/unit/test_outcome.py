"""What a handler may return, and how it says retry."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.model.errors import ConfigurationError
from pipeline.model.outcome import ALLOWED_RETURNS, Done, Emit, Failure, FailureKind, Retry, Warn, outcome_of

EMIT = Emit("t", "k", {"a": 1})


@pytest.mark.parametrize(
    ("returned", "outcome", "emitted"),
    [
        (None, Done(), []),
        (EMIT, Done(), [EMIT]),
        ([EMIT, EMIT], Done(), [EMIT, EMIT]),
        ((EMIT,), Done(), [EMIT]),
        ([], Done(), []),
        (Warn("late"), Done("late"), []),
    ],
)
def test_allowed_returns(returned: object, outcome: Done, emitted: list[Emit]) -> None:
    found, records = outcome_of(returned)
    assert found == outcome
    assert list(records) == emitted


@given(
    st.one_of(
        st.booleans(),
        st.integers(),
        st.text(),
        st.binary(),
        st.dictionaries(st.text(), st.integers()),
        st.lists(st.integers(), min_size=1),
    )
)
def test_anything_else_is_terminal_and_names_what_is_allowed(returned: object) -> None:
    outcome, emitted = outcome_of(returned)
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.TERMINAL
    assert ALLOWED_RETURNS in outcome.message
    assert type(returned).__name__ in outcome.message
    assert not emitted


def test_a_mixed_list_is_refused_whole() -> None:
    outcome, emitted = outcome_of([EMIT, Warn("x")])
    assert isinstance(outcome, Failure)
    assert not emitted


def test_retry_after() -> None:
    assert Retry(after="20s").after_ms == 20_000
    assert Retry(after=0.5).after_ms == 500
    assert Retry().after_ms is None
    with pytest.raises(ConfigurationError, match="Retry"):
        Retry(after=float("nan"))
