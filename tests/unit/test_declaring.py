"""A handler that can't be called as it will be is told where it is declared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pipeline import ConfigurationError, Context, Pipeline, Settings


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
