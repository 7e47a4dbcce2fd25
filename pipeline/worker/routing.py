"""A routing table: one group, one handler per type of event."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from pipeline.model.errors import ConfigurationError
from pipeline.model.events import RunEvent
from pipeline.worker.context import Context

H = TypeVar("H", bound=Callable[..., Awaitable[Any]])


class Router:
    """Fill it with `@router.on(ToolCall)`, then subscribe it: `app.subscribe(topic, group="billing")(router)`.

    Events of a type that has no row count as done; `@router.otherwise` takes them instead. Handlers are `async def`.
    """

    def __init__(self) -> None:
        self._table: dict[type, Callable[..., Awaitable[Any]]] = {}
        self._otherwise: Callable[..., Awaitable[Any]] | None = None

    def on(self, *types: type[RunEvent]) -> Callable[[H], H]:
        """Route these event types to the decorated handler; each type has one row at most."""

        def add(handler: H) -> H:
            self._check(handler)
            for kind in types:
                if kind in self._table:
                    raise ConfigurationError(f"{kind.__name__} is routed already: one handler per event type and group")
                self._table[kind] = handler
            return handler

        if not types:
            raise ConfigurationError("router.on() needs an event type, such as @router.on(ToolCall)")
        return add

    def otherwise(self, handler: H) -> H:
        """The handler of every type that has no row."""
        self._check(handler)
        self._otherwise = handler
        return handler

    @staticmethod
    def _check(handler: Callable[..., Any]) -> None:
        if not inspect.iscoroutinefunction(handler):
            raise ConfigurationError(f"{getattr(handler, '__name__', handler)!r} must be `async def` to be routed to")

    async def __call__(self, event: object, context: Context) -> object:
        handler = self._table.get(type(event), self._otherwise)
        return None if handler is None else await handler(event, context)
