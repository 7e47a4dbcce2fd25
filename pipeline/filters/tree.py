"""A filter as a checked tree: literals fit their fields, times and durations are milliseconds. For those who compile or translate it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from pipeline.filters.fields import Field

Value: TypeAlias = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Compare:
    """`op`: == != < <= > >= contains startswith endswith like. False where the field is null, `negated` or not."""

    field: Field
    op: str
    value: Value
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Within:
    """`in` and `not in`. False where the field is null."""

    field: Field
    values: tuple[Value, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class IsNull:
    field: Field
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Not:
    term: Node


@dataclass(frozen=True, slots=True)
class All:
    terms: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Any_:
    terms: tuple[Node, ...]


Node: TypeAlias = Compare | Within | IsNull | Not | All | Any_
