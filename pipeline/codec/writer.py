"""dict -> Avro bytes, by a function generated for one schema (see `reader` for why).

Schemas with a union other than `[null, X]` are left to fastavro, which knows how to choose a branch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from io import BytesIO
from struct import Struct
from struct import error as StructError
from typing import Any, Final

from fastavro import schemaless_writer

from pipeline.codec.defaults import default_of, with_defaults
from pipeline.codec.generated import function
from pipeline.codec.schema import PRIMITIVES, AvroSchema, Node

Write = Callable[[Mapping[str, Any], bytes], bytes]
"""(fields, prefix) -> prefix + Avro body. Raises one of WRITE_ERRORS when a field does not fit."""

WriteRow = Callable[[Sequence[Any], bytes], bytes]
"""The same of a row: a value for each field, in the schema's order, and records in it likewise."""

WRITE_ERRORS: Final = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    IndexError,
    StructError,
)

_LONG_MAX = 2**63 - 1
_INT_MAX = 2**31 - 1


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


_SMALL: Final = tuple(_varint(number << 1) for number in range(8_192))
"""Zigzag varints of 0..8191: nearly every length, count and duration there is."""


@lru_cache(4_096, typed=True)
def _long(number: int) -> bytes:
    """(Kept, since what happens in one millisecond has its number in common.)"""
    if 1 << 34 <= number < 1 << 41:  # a time in milliseconds, of the years 1970 to 2039: six bytes, without a loop
        return bytes(
            (
                number << 1 & 127 | 128,
                number >> 6 & 127 | 128,
                number >> 13 & 127 | 128,
                number >> 20 & 127 | 128,
                number >> 27 & 127 | 128,
                number >> 34,
            )
        )
    if not -_LONG_MAX - 1 <= number <= _LONG_MAX:
        raise OverflowError(f"{number} does not fit a long")
    return _varint((number << 1) ^ (number >> 63))


def _int(number: int) -> bytes:
    if not -_INT_MAX - 1 <= number <= _INT_MAX:
        raise OverflowError(f"{number} does not fit an int")
    return _varint((number << 1) ^ (number >> 63))


def _bytes(value: Any) -> bytes:
    """Of a view, or bytes that can change. Not of any buffer: `len` of an array is told in its items, whose bytes differ by machine."""
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError(f"{type(value).__name__} is not bytes")
    return bytes(value)


def _fixed(value: bytes, size: int) -> bytes:
    if type(value) is not bytes:
        value = _bytes(value)
    if len(value) != size:
        raise ValueError(f"{len(value)} bytes instead of {size}")
    return value


def _container(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} is not a list or map")
    return value


def compile_writer(schema: AvroSchema) -> Write:
    """The writer of one record schema. Missing fields take their default; unknown ones are not looked at."""
    write: Write = _generated(_Source(schema)) if _is_simple(schema.node, schema) else _fastavro_writer(schema)
    return write


def compile_row_writer(schema: AvroSchema) -> WriteRow:
    """For values that have their fields in order anyway: no name is looked up, which is two thirds of the time.

    Every field is given, also one that has a default. Raises ValueError for a schema with a union other than `[null, X]`.
    """
    if not _is_simple(schema.node, schema):
        raise ValueError(f"{schema.name} has a union of several types: its values can't be given as rows")
    write: WriteRow = _generated(_RowSource(schema))
    return write


def _generated(source: _Source) -> Any:
    name = source.schema.name
    parts = source.emit(source.schema.node, "d", "  ")
    lines = ["def write(d, prefix):", *source.lines, f"  return b''.join((prefix, {', '.join(parts)}))"]
    return function("write", [*source.functions, *lines], source.scope, f"<writer of {name}>")


def fields_of(schema: AvroSchema, row: Sequence[Any]) -> dict[str, Any]:
    """A row's values by name."""
    return {
        member["name"]: _by_name(schema, member["type"], value)
        for member, value in zip(schema.node["fields"], row, strict=True)
    }


def _by_name(schema: AvroSchema, node: Node, value: Any) -> Any:
    if isinstance(node, list):
        return None if value is None else _by_name(schema, node[-1], value)
    if isinstance(node, str):
        return value if node in PRIMITIVES else _by_name(schema, schema.named[node], value)
    kind = node["type"]
    if kind in ("record", "error"):
        return fields_of(replace(schema, node=node), value)
    if kind == "array":
        return [_by_name(schema, node["items"], each) for each in value]
    if kind == "map":
        return {name: _by_name(schema, node["values"], each) for name, each in value.items()}
    return value if isinstance(kind, str) else _by_name(schema, kind, value)


def _fastavro_writer(schema: AvroSchema) -> Write:
    node, _ = with_defaults(schema)

    def write(fields: Mapping[str, Any], prefix: bytes) -> bytes:
        out = BytesIO()
        out.write(prefix)
        schemaless_writer(out, node, fields)
        return out.getvalue()

    return write


def _is_simple(node: Node, schema: AvroSchema) -> bool:
    if isinstance(node, list):
        return len(node) == 2 and node[0] == "null" and _is_simple(node[1], schema)
    if isinstance(node, str):
        return node in PRIMITIVES or _is_simple(schema.named[node], schema)
    kind = node["type"]
    if kind in ("record", "error"):
        return all(_is_simple(member["type"], schema) for member in node["fields"])
    if kind in ("array", "map"):
        return _is_simple(node["items" if kind == "array" else "values"], schema)
    return kind in ("enum", "fixed") or _is_simple(kind, schema)


class _Source:
    """The lines of one generated function. `emit` gives the expressions whose bytes, joined, are the
    value.
    """

    def __init__(self, schema: AvroSchema) -> None:
        self.schema = schema
        self.lines: list[str] = []
        self.functions: list[str] = []
        self.names = 0
        self.scope: dict[str, Any] = {
            "small": _SMALL,
            "long": _long,
            "int_": _int,
            "bytes_": _bytes,
            "fixed": _fixed,
            "container": _container,
            "Mapping": Mapping,
            "float_of": Struct("<f").pack,
            "double_of": Struct("<d").pack,
        }

    def new(self) -> str:
        self.names += 1
        return f"v{self.names}"

    def emit(self, node: Node, value: str, pad: str) -> list[str]:
        """Lines that prepare `value` (an expression, evaluated once), and the expressions of its bytes."""
        if isinstance(node, list):
            return self.optional(node[1], value, pad)
        kind = node["type"] if isinstance(node, dict) else node
        if isinstance(kind, (dict, list)):
            return self.emit(kind, value, pad)
        method = getattr(self, f"write_{kind}", None)
        if method is None:
            return self.emit(self.schema.named[kind], value, pad)
        parts: list[str] = method(node, value, pad)
        return parts

    def hold(self, value: str, pad: str) -> str:
        """A variable with the value of an expression, which is then evaluated once."""
        if value.isidentifier():
            return value
        name = self.new()
        self.lines.append(f"{pad}{name} = {value}")
        return name

    def write_null(self, _node: Node, value: str, pad: str) -> list[str]:
        self.lines.append(f"{pad}if {value} is not None: raise ValueError('not null')")
        return ["b''"]

    def write_boolean(self, _node: Node, value: str, _pad: str) -> list[str]:
        return [f"{{False: b'\\x00', True: b'\\x01'}}[{value}]"]

    def write_long(self, _node: Node, value: str, pad: str) -> list[str]:
        name = self.hold(value, pad)
        return [f"small[{name}] if 0 <= {name} < 8192 else long({name})"]

    def write_int(self, _node: Node, value: str, pad: str) -> list[str]:
        name = self.hold(value, pad)
        return [f"small[{name}] if 0 <= {name} < 8192 else int_({name})"]

    def write_float(self, _node: Node, value: str, _pad: str) -> list[str]:
        return [f"float_of({value})"]

    def write_double(self, _node: Node, value: str, _pad: str) -> list[str]:
        return [f"double_of({value})"]

    def write_string(self, _node: Node, value: str, pad: str) -> list[str]:
        name = self.hold(f"({value}).encode()", pad)
        return [f"small[len({name})] if len({name}) < 8192 else long(len({name}))", name]

    def write_bytes(self, _node: Node, value: str, pad: str) -> list[str]:
        name = self.hold(value, pad)
        self.lines.append(f"{pad}if type({name}) is not bytes: {name} = bytes_({name})")
        return [f"small[len({name})] if len({name}) < 8192 else long(len({name}))", name]

    def write_fixed(self, node: Node, value: str, _pad: str) -> list[str]:
        return [f"fixed({value}, {int(node['size'])})"]

    def write_enum(self, node: Node, value: str, _pad: str) -> list[str]:
        symbols = self.new()
        self.scope[symbols] = {symbol: _varint(index << 1) for index, symbol in enumerate(node["symbols"])}
        return [f"{symbols}[{value}]"]

    def write_record(self, node: Node, value: str, pad: str) -> list[str]:
        parts: list[str] = []
        for member in node["fields"]:
            name = member["name"]
            expression = f"{value}[{name!r}]"
            if "default" in member:
                default = self.new()
                self.scope[default] = default_of(member, self.schema)
                expression = f"{expression} if {name!r} in {value} else {default}"
            parts += self.emit(member["type"], self.hold(expression, pad), pad)
        return parts or ["b''"]

    def write_error(self, node: Node, value: str, pad: str) -> list[str]:
        return self.write_record(node, value, pad)

    def write_array(self, node: Node, value: str, pad: str) -> list[str]:
        items = self.hold(f"container({value}, (list, tuple))", pad)
        item = self.item(node["items"])
        return [f"long(len({items})) + b''.join([{item}(x) for x in {items}]) + b'\\x00' if {items} else b'\\x00'"]

    def write_map(self, node: Node, value: str, pad: str) -> list[str]:
        items = self.hold(f"container({value}, Mapping)", pad)
        key, item = self.item("string"), self.item(node["values"])
        pairs = f"b''.join([{key}(k) + {item}(x) for k, x in {items}.items()])"
        return [f"long(len({items})) + {pairs} + b'\\x00' if {items} else b'\\x00'"]

    def item(self, node: Node) -> str:
        """A function of its own for a nested value: value -> bytes."""
        outer, self.lines = self.lines, []
        parts = self.emit(node, "x", "  ")
        name = f"item_{self.new()}"
        self.functions += [f"def {name}(x):", *self.lines, f"  return b''.join(({', '.join(parts)},))"]
        self.lines = outer
        return name

    def optional(self, node: Node, value: str, pad: str) -> list[str]:
        """`[null, X]`: the branch number and, unless it is null, the value."""
        held, out = self.hold(value, pad), self.new()
        self.lines += [f"{pad}if {held} is None: {out} = b'\\x00'", f"{pad}else:"]
        parts = self.emit(node, held, pad + "  ")
        self.lines.append(f"{pad}  {out} = b''.join((b'\\x02', {', '.join(parts)}))")
        return [out]


class _RowSource(_Source):
    """Of rows."""

    def write_record(self, node: Node, value: str, pad: str) -> list[str]:
        names = [self.new() for _ in node["fields"]]
        self.lines.append(f"{pad}[{', '.join(names)}] = {value}")
        parts: list[str] = []
        for member, name in zip(node["fields"], names, strict=True):
            parts += self.emit(member["type"], name, pad)
        return parts or ["b''"]
