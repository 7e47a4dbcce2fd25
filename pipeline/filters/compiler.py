"""A checked tree as nested closures: one call says whether a row matches. Cheap conditions are asked first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

from pipeline.filters.fields import Field, Get, Kind, header_as_number, short_type
from pipeline.filters.glob import glob
from pipeline.filters.parser import parse
from pipeline.filters.row import Row
from pipeline.filters.tree import All, Any_, IsNull, Node, Not, Value, Within

Test = Callable[[Row], bool]


class Needs(NamedTuple):
    """What a filter may look at beside topic, partition, offset, timestamp, size and key."""

    headers: bool
    value: bool


@dataclass(frozen=True, slots=True)
class Filter:
    """A compiled filter. Two are equal when their text and time are. `matches(row)` never raises and changes nothing.

    `tree` is for those who translate a filter, say for an index.
    """

    text: str
    now_ms: int
    tree: Node = field(compare=False, repr=False)
    needs: Needs = field(compare=False)
    matches: Test = field(compare=False, repr=False)


def compile_filter(text: str, now_ms: int) -> Filter:
    """The filter, for use on any number of rows. `age` counts back from `now_ms` (of a plan: when it was made).

    Raises `FilterError` with the column of what is wrong.
    """
    tree = parse(text)
    found = list(_fields(tree))
    needs = Needs(any(f.headers for f in found), any(f.value for f in found))
    return Filter(text, now_ms, tree, needs, _test(tree, now_ms))


def _fields(node: Node) -> Iterator[Field]:
    if isinstance(node, (All, Any_)):
        for term in node.terms:
            yield from _fields(term)
    elif isinstance(node, Not):
        yield from _fields(node.term)
    else:
        yield node.field


def _cost(node: Node) -> int:
    """In this order: position and key, headers, what a header may answer without decoding, the value."""
    return max((2 if f.headers else 3) if f.value else int(f.headers) for f in _fields(node))


def _test(node: Node, now_ms: int) -> Test:
    if isinstance(node, (All, Any_)):
        tests = tuple(_test(term, now_ms) for term in sorted(node.terms, key=_cost))
        return _all(tests) if isinstance(node, All) else _any(tests)
    if isinstance(node, Not):
        inner = _test(node.term, now_ms)
        return lambda row: not inner(row)
    if isinstance(node, IsNull):
        get = node.field.get
        return (lambda row: get(row) is not None) if node.negated else (lambda row: get(row) is None)
    if isinstance(node, Within):
        positive = _within(node.field, node.values, now_ms)
    elif node.op == "!=":
        return _negative(node.field, _compare(node.field, "==", node.value, now_ms))
    else:
        positive = _compare(node.field, node.op, node.value, now_ms)
    return _negative(node.field, positive) if node.negated else positive


def _all(tests: tuple[Test, ...]) -> Test:
    if len(tests) == 2:
        one, two = tests
        return lambda row: one(row) and two(row)

    def test(row: Row) -> bool:
        for each in tests:  # noqa: SIM110 - a generator would cost more than the tests
            if not each(row):
                return False
        return True

    return test


def _any(tests: tuple[Test, ...]) -> Test:
    if len(tests) == 2:
        one, two = tests
        return lambda row: one(row) or two(row)

    def test(row: Row) -> bool:
        for each in tests:  # noqa: SIM110
            if each(row):
                return True
        return False

    return test


def _negative(field: Field, positive: Test) -> Test:
    """There is something, and it is not that."""
    get = field.get
    return lambda row: not positive(row) and get(row) is not None


def _compare(field: Field, op: str, value: Value, now_ms: int) -> Test:
    if op == "contains" and field.kind is Kind.ANY:
        return _holds(field.get, value)
    return _OPERATIONS[op](_reader(field, value, now_ms), value)


def _within(field: Field, values: Collection[Value], now_ms: int) -> Test:
    """Values of one sort (of text, for `type`: with or without a dot) are looked up at once."""
    groups: dict[object, set[Value]] = {}
    for value in values:
        groups.setdefault((_sort_of(value), field.name == "type" and "." in str(value)), set()).add(value)
    tests = []
    for group in groups.values():
        tests.append(_one_of(_reader(field, next(iter(group)), now_ms), frozenset(group)))
    return tests[0] if len(tests) == 1 else _any(tuple(tests))


def _one_of(get: Get, wanted: frozenset[Value]) -> Test:
    return lambda row: get(row) in wanted


def _reader(field: Field, value: Value, now_ms: int) -> Get:
    """Reads the field for a comparison with `value`: None where there is nothing, or nothing of its sort."""
    get = field.get
    if field.kind is Kind.DURATION:

        def age(row: Row) -> int | None:
            time_ms: int | None = get(row)
            return None if time_ms is None else now_ms - time_ms

        return age
    if field.name == "type" and "." not in str(value):
        return short_type
    if field.kind is Kind.HEADER and not isinstance(value, str):
        return header_as_number(field.path[0])
    if field.kind is Kind.ANY:
        sorts = _SORTS[_sort_of(value)]

        def guarded(row: Row) -> Any:
            found = get(row)
            return found if type(found) in sorts else None

        return guarded
    return get


_SORTS: dict[str, frozenset[type]] = {
    "text": frozenset({str}),
    "bool": frozenset({bool}),
    "number": frozenset({int, float, Decimal}),
}


def _sort_of(value: Value) -> str:
    return "text" if isinstance(value, str) else "bool" if isinstance(value, bool) else "number"


def _holds(get: Get, value: Value) -> Test:
    """`contains` on a part of the value: a text in a text, or an item of a list."""
    sorts, text = _SORTS[_sort_of(value)], value if isinstance(value, str) else None

    def test(row: Row) -> bool:
        found = get(row)
        if type(found) is str:
            return text is not None and text in found
        return isinstance(found, (list, tuple)) and any(type(item) in sorts and item == value for item in found)

    return test


def _equal(get: Get, value: Any) -> Test:
    return lambda row: get(row) == value


def _less(get: Get, value: Any) -> Test:
    return lambda row: (found := get(row)) is not None and found < value


def _at_most(get: Get, value: Any) -> Test:
    return lambda row: (found := get(row)) is not None and found <= value


def _more(get: Get, value: Any) -> Test:
    return lambda row: (found := get(row)) is not None and found > value


def _at_least(get: Get, value: Any) -> Test:
    return lambda row: (found := get(row)) is not None and found >= value


def _contains(get: Get, value: Any) -> Test:
    return lambda row: (found := get(row)) is not None and value in found


def _starts(get: Get, value: Any) -> Test:
    return lambda row: (found := get(row)) is not None and found.startswith(value)


def _ends(get: Get, value: Any) -> Test:
    return lambda row: (found := get(row)) is not None and found.endswith(value)


def _like(get: Get, value: Any) -> Test:
    fits = glob(value)
    return lambda row: (found := get(row)) is not None and fits(found)


_OPERATIONS: dict[str, Callable[[Get, Any], Test]] = {
    "==": _equal,
    "<": _less,
    "<=": _at_most,
    ">": _more,
    ">=": _at_least,
    "contains": _contains,
    "startswith": _starts,
    "endswith": _ends,
    "like": _like,
}
