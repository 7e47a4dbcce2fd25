"""A handler that can't be called as it will be is told where it is declared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pipeline import BatchPolicy, ConfigurationError, Context, Pipeline, Settings


async def without_context(event: dict[str, Any]) -> None: ...


def nothing() -> None: ...


def three(event: dict[str, Any], ctx: Context, more: int) -> None: ...


def named_only(event: dict[str, Any], *, ctx: Context) -> None: ...


def two(event: dict[str, Any], ctx: Context) -> None: ...


def defaults(event: dict[str, Any], ctx: Context, more: int = 0) -> None: ...


def any_number(*arguments: object) -> None: ...


class Called:
    async def __call__(self, event: dict[str, Any], ctx: Context) -> None: ...


class CalledWithOne:
    async def __call__(self, event: dict[str, Any]) -> None: ...


def app() -> Pipeline:
    return Pipeline("declared", settings=Settings(broker="memory://declared"))


@pytest.mark.parametrize("handler", [without_context, nothing, three, named_only, CalledWithOne()])
@pytest.mark.parametrize("batch", [None, 10])
def test_what_takes_other_arguments_is_refused(handler: Callable[..., Any], batch: int | None) -> None:
    name = getattr(handler, "__name__", "CalledWithOne")
    with pytest.raises(ConfigurationError, match=rf"^the handler {name}\(.*group='g'.*def {name}\(event, ctx\)"):
        app().subscribe("events", group="g", batch=batch)(handler)


@pytest.mark.parametrize("handler", [two, defaults, any_number, Called(), Called().__call__])
def test_what_takes_both_is_taken(handler: Callable[..., Any]) -> None:
    made = app()
    made.subscribe("events", group="g")(handler)
    assert [subscription.handler for subscription in made.subscriptions] == [handler]


@pytest.mark.parametrize(
    ("argument", "wrong", "told"),
    [
        ("batch", "10", "^batch='10' must be a number of records or a BatchPolicy"),
        ("batch", True, "^batch=True must be a number of records or a BatchPolicy"),
        ("batch", 0, "^batch size=0 must be "),
        ("batch", BatchPolicy(wait_ms=-1), "^batch wait_ms=-1 must be "),
        ("batch", BatchPolicy(whole="no"), "^batch whole='no' must be True or False"),  # type: ignore[arg-type]
        ("flow", {"buffered": 10}, "^flow={'buffered': 10} must be FlowPolicy"),
        ("isolation", 2, "^isolation=2 must be IsolationPolicy"),
        ("retries", 5, "^retries=5 must be Retries"),
        ("unknown_event", "drop", "^unknown_event='drop' is not one of skip, dead_letter"),
    ],
)
def test_a_wrong_option_is_told_where_it_is_declared(argument: str, wrong: Any, told: str) -> None:
    """A batch of none made the worker spin; the others were AttributeErrors, or found out by the first record."""
    options: dict[str, Any] = {argument: wrong}
    with pytest.raises(ConfigurationError, match=told):
        app().subscribe("events", group="g", **options)
