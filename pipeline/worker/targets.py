"""Under which name, `MODULE:APP`, a child process can import the application that runs here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.model.errors import ConfigurationError

if TYPE_CHECKING:
    from pipeline.app import Pipeline


def target_of(app: Pipeline) -> str | None:
    """Where a handler's module keeps this very application in a variable; None when none does (a notebook, a local variable)."""
    for handler in _handlers(app):
        name = getattr(handler, "__module__", "") or ""
        module = sys.modules.get(name)
        for variable, value in vars(module).items() if module is not None else ():
            if value is app:
                spec = getattr(module, "__spec__", None) if name == "__main__" else None
                known = spec.name if spec is not None else name
                return None if known == "__main__" else f"{known}:{variable}"
    return None


def _handlers(app: Pipeline) -> Iterator[object]:
    for subscription in app.subscriptions:
        yield subscription.handler
    for declared in app.job_types.values():
        yield declared.handler


def needed(target: str | None, name: str) -> str:
    """Raises ConfigurationError when there is none."""
    if target is None:
        raise ConfigurationError(
            f"executor='process' needs application {name!r} under a name that a child process can import: "
            "keep it in a variable of a module and start it with `pipeline run MODULE:APP`"
        )
    return target
