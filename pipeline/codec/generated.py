"""Functions generated for one schema: their code is compiled once in a process, however many applications use the schema."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from types import CodeType
from typing import Any, Final

_KEPT: Final = 1_024
"""Compiled texts: more than the schemas of any application; a process that meets ever new ones keeps no more."""


@lru_cache(_KEPT)
def _code(text: str, origin: str) -> CodeType:
    return compile(text, origin, "exec")


def function(name: str, lines: Sequence[str], scope: dict[str, Any], origin: str) -> Any:
    """The function that `lines` define as `name`, with the names of `scope`. `origin` stands in tracebacks for a file's name."""
    exec(_code("\n".join(lines), origin), scope)
    return scope[name]
