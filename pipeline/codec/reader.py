"""Avro bytes -> dict, by a function generated for one schema.

fastavro reads a 14-field event in 4.8 us, most of it calls to read one byte at a time; straight-line code
over the bytes themselves takes about half, and checks as it goes: lengths, counts, branch and symbol numbers,
UTF-8, and that the value ends where the bytes end. What goes into the code are numbers and `repr` of names,
nothing that runs. A union with more than one named branch gives `(full name, value)`, as fastavro does with
`return_record_name`.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from struct import error as StructError
from typing import Any, Final

from pipeline.codec.generated import function
from pipeline.codec.schema import AvroSchema, Node

Read = Callable[[bytes, int], Any]
"""(data, start of the body) -> value. Raises one of READ_ERRORS when the bytes are not exactly one value."""

READ_ERRORS: Final = (ValueError, IndexError, StructError)

_VARINT_SHIFT_MAX = 63
_TWO_BRANCHES = 2


def compile_reader(schema: AvroSchema) -> Read:
    """The reader of one schema; its dicts have the fields in the schema's order."""
    body = _Source(schema)
    value = body.emit(schema.node, "  ")
    lines = [
        "def read(data, pos):",
        *body.lines,
        "  if pos != len(data): raise ValueError(f'the value ends at byte {pos} of {len(data)}')",
        f"  return {value}",
    ]
    read: Read = function("read", [*body.functions, *lines], body.scope, f"<reader of {schema.name}>")
    return read


def _rest(data: bytes, pos: int, number: int) -> tuple[int, int]:
    """The rest of a varint whose first byte had its high bit set: (raw number, position after it)."""
    number &= 127
    shift = 7
    while True:
        byte = data[pos]
        pos += 1
        number |= (byte & 127) << shift
        if byte < 128:
            if number >> 64:
                raise ValueError("a number is longer than 64 bits")
            return number, pos
        shift += 7
        if shift > _VARINT_SHIFT_MAX:
            raise ValueError("a number is longer than 10 bytes")


def _block(data: bytes, pos: int, count: int) -> tuple[int, int]:
    """Items in an array's or map's block, from its raw count: (items, position). Each takes a byte at
    least.
    """
    if count & 1:
        count = ((count + 1) >> 1) << 1
        size = data[pos]
        pos += 1
        if size > 127:
            size, pos = _rest(data, pos, size)
    items = count >> 1
    if items > len(data) - pos:
        raise ValueError(f"a block of {items} items does not fit the {len(data) - pos} bytes left")
    return items, pos


class _Source:
    """The lines of one generated function, and the names it uses."""

    def __init__(self, schema: AvroSchema) -> None:
        self.schema = schema
        self.lines: list[str] = []
        self.functions: list[str] = []
        self.scope: dict[str, Any] = {
            "rest": _rest,
            "block": _block,
            "float_at": Struct("<f").unpack_from,
            "double_at": Struct("<d").unpack_from,
        }
        self.names = 0

    def new(self) -> str:
        self.names += 1
        return f"v{self.names}"

    def number(self, pad: str) -> None:
        """Leaves a raw (not zigzag-decoded) number in `n`."""
        self.lines += [
            f"{pad}n = data[pos]; pos += 1",
            f"{pad}if n > 127:",
            f"{pad}  b = data[pos]",
            f"{pad}  if b < 128: n += (b << 7) - 128; pos += 1",
            f"{pad}  else: n, pos = rest(data, pos, n)",
        ]

    def emit(self, node: Node, pad: str) -> str:
        """Lines that read one value of `node`; gives the variable that holds it."""
        if isinstance(node, list):
            return self.union(node, pad)
        kind = node["type"] if isinstance(node, dict) else node
        if isinstance(kind, (dict, list)):
            return self.emit(kind, pad)
        method = getattr(self, f"read_{kind}", None)
        if method is None:
            return self.emit(self.schema.named[kind], pad)
        target = self.new()
        method(node, target, pad)
        return target

    def read_null(self, _node: Node, target: str, pad: str) -> None:
        self.lines.append(f"{pad}{target} = None")

    def read_boolean(self, _node: Node, target: str, pad: str) -> None:
        self.lines += [f"{pad}{target} = (False, True)[data[pos]]", f"{pad}pos += 1"]

    def read_long(self, _node: Node, target: str, pad: str) -> None:
        self.number(pad)
        self.lines.append(f"{pad}{target} = (n >> 1) ^ -(n & 1)")

    def read_int(self, node: Node, target: str, pad: str) -> None:
        self.read_long(node, target, pad)
        self.lines.append(f"{pad}if n >> 32: raise ValueError('an int is longer than 32 bits')")

    def read_float(self, _node: Node, target: str, pad: str) -> None:
        self.lines += [f"{pad}{target} = float_at(data, pos)[0]", f"{pad}pos += 4"]

    def read_double(self, _node: Node, target: str, pad: str) -> None:
        self.lines += [f"{pad}{target} = double_at(data, pos)[0]", f"{pad}pos += 8"]

    def length(self, pad: str) -> None:
        """Leaves the end of a length-prefixed value in `end`; beyond the data is caught where the value
        ends.
        """
        self.number(pad)
        self.lines += [
            f"{pad}if n & 1: raise ValueError('a length is negative')",
            f"{pad}end = pos + (n >> 1)",
        ]

    def read_string(self, _node: Node, target: str, pad: str) -> None:
        self.length(pad)
        self.lines += [f"{pad}{target} = str(data[pos:end], 'utf-8')", f"{pad}pos = end"]

    def read_bytes(self, _node: Node, target: str, pad: str) -> None:
        self.length(pad)
        self.lines += [f"{pad}{target} = data[pos:end]", f"{pad}pos = end"]

    def read_fixed(self, node: Node, target: str, pad: str) -> None:
        size = int(node["size"])
        # Checked here: a slice beyond the end is no error, and an array of these would run on after the data.
        self.lines += [
            f"{pad}{target} = data[pos:pos + {size}]",
            f"{pad}pos += {size}",
            f"{pad}if pos > len(data): raise ValueError('a fixed value is cut short')",
        ]

    def read_enum(self, node: Node, target: str, pad: str) -> None:
        symbols = self.new()
        self.scope[symbols] = tuple(node["symbols"])
        self.number(pad)
        self.lines += [
            f"{pad}if n & 1: raise ValueError('a symbol number is negative')",
            f"{pad}{target} = {symbols}[n >> 1]",
        ]

    def read_record(self, node: Node, target: str, pad: str) -> None:
        pairs = [(member["name"], self.emit(member["type"], pad)) for member in node["fields"]]
        self.lines.append(f"{pad}{target} = {{{', '.join(f'{name!r}: {value}' for name, value in pairs)}}}")

    read_error = read_record

    def read_array(self, node: Node, target: str, pad: str) -> None:
        item = self.item(node["items"])
        self.blocks(target, "[]", [f"item, pos = {item}(data, pos)", f"{target}.append(item)"], pad)

    def read_map(self, node: Node, target: str, pad: str) -> None:
        key, value = self.item("string"), self.item(node["values"])
        steps = [f"key, pos = {key}(data, pos)", f"{target}[key], pos = {value}(data, pos)"]
        self.blocks(target, "{}", steps, pad)

    def blocks(self, target: str, empty: str, steps: list[str], pad: str) -> None:
        self.lines.append(f"{pad}{target} = {empty}")
        self.number(pad)
        self.lines += [f"{pad}while n:", f"{pad}  n, pos = block(data, pos, n)", f"{pad}  for _ in range(n):"]
        self.lines += [f"{pad}    {step}" for step in steps]
        self.number(pad + "  ")

    def item(self, node: Node) -> str:
        """A function of its own for the items of a block: (data, pos) -> (value, position after it)."""
        outer, self.lines = self.lines, []
        value = self.emit(node, "  ")
        name = f"item_{self.new()}"
        self.functions += [f"def {name}(data, pos):", *self.lines, f"  return {value}, pos"]
        self.lines = outer
        return name

    def union(self, branches: list[Node], pad: str) -> str:
        target = self.new()
        named = [name for name in (self.name_of(branch) for branch in branches) if name]
        self.number(pad)
        for index, branch in enumerate(branches):
            self.lines.append(f"{pad}{'if' if index == 0 else 'elif'} n == {2 * index}:")
            value = self.emit(branch, pad + "  ")
            name = self.name_of(branch)
            tagged = f"({name!r}, {value})" if name and len(named) >= _TWO_BRANCHES else value
            self.lines.append(f"{pad}  {target} = {tagged}")
        self.lines.append(f"{pad}{'else' if branches else 'if True'}: raise ValueError('a union has no such branch')")
        return target

    def name_of(self, branch: Node) -> str | None:
        """The record's full name when a union's branch is a record."""
        node = self.schema.named.get(branch, branch) if isinstance(branch, str) else branch
        return node["name"] if isinstance(node, dict) and node["type"] in ("record", "error") else None
