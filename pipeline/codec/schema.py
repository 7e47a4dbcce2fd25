"""One Avro schema: parsed, named, fingerprinted, and refused when reading with it could kill the process.

A writer's schema comes from a registry and so from strangers. A recursive one lets 5 KB of input overflow the
C stack, and items of zero bytes let 5 bytes of input become gigabytes, so neither is accepted, whoever wrote
it. Logical types are read as the type beneath them: `timestamp-millis` is an int, which costs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastavro import parse_schema
from fastavro.schema import SchemaParseException, UnknownType, fingerprint, to_parsing_canonical_form

from pipeline.model.errors import CodecError

TEXT_BYTES_MAX = 1_000_000
DEPTH_MAX = 32
NODES_MAX = 4_096
"""Types in a schema once every reference is written out: bounds what one value can expand to."""

PRIMITIVES = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})

Node = Any
"""A schema in Avro's JSON form: a name, a list (union) or a dict."""


class SchemaRefused(CodecError):
    """The schema is malformed, or values read with it could take the process down."""


@dataclass(frozen=True, slots=True)
class AvroSchema:
    """A schema that is safe to read with.

    `name` is the record's full name (of another top-level type, its type); `text` the compact JSON that
    registries get; `node` the parsed form with logical types taken off and `named` its named types by full
    name; `fingerprint` CRC-64-AVRO of the parsing canonical form as 16 hex digits in the specification's byte
    order on the wire (little endian).
    """

    name: str
    text: str
    fingerprint: str
    definition: Node = field(repr=False, compare=False)
    node: Node = field(repr=False, compare=False)
    named: Mapping[str, Node] = field(repr=False, compare=False)

    @property
    def compatibility(self) -> str:
        """The level its versions are held to, from the contract's own `compatibility` attribute."""
        if isinstance(self.definition, dict):
            return str(self.definition.get("compatibility", "FULL_TRANSITIVE"))
        return "FULL_TRANSITIVE"


def parse(source: str | Node) -> AvroSchema:
    """An AvroSchema from JSON text or its decoded form. Raises SchemaRefused that says what is wrong with
    it.
    """
    definition, text = _load(source)
    named: dict[str, Node] = {}
    try:
        node = parse_schema(physical(definition), named_schemas=named)
        canonical = to_parsing_canonical_form(node)
    except (SchemaParseException, UnknownType, KeyError, TypeError, ValueError, AttributeError) as error:
        raise SchemaRefused(f"The schema is not valid Avro: {error!r}.") from error
    name = str(node["name"]) if isinstance(node, dict) and "name" in node else str(_kind(node))
    _Guard(named).check(node, name)
    return AvroSchema(name, text, fingerprint(canonical, "CRC-64-AVRO"), definition, node, named)


def _load(source: str | Node) -> tuple[Node, str]:
    try:
        definition = source
        if isinstance(source, str) and source.strip() not in PRIMITIVES:
            if len(source) > TEXT_BYTES_MAX:
                raise SchemaRefused(f"The schema has {len(source)} characters, more than {TEXT_BYTES_MAX}.")
            definition = json.loads(source)
        text = json.dumps(definition, separators=(",", ":"))
    except (RecursionError, ValueError, TypeError) as error:
        raise SchemaRefused(f"The schema is not JSON: {error}.") from error
    if len(text) > TEXT_BYTES_MAX:
        raise SchemaRefused(f"The schema has {len(text)} characters, more than {TEXT_BYTES_MAX}.")
    _bound_depth(definition, 4 * DEPTH_MAX)
    return definition, text


def _bound_depth(node: Node, left: int) -> None:
    """Refuse nesting that would overflow a parser's stack (each Avro type is up to four levels of JSON)."""
    if left == 0:
        raise SchemaRefused(f"The schema nests deeper than {DEPTH_MAX} types.")
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            _bound_depth(child, left - 1)


def physical(node: Node) -> Node:
    """The schema without logical types. Defaults and documentation are kept as they are."""
    if isinstance(node, list):
        return [physical(branch) for branch in node]
    if not isinstance(node, dict):
        return node
    plain = {key: value for key, value in node.items() if key != "logicalType"}
    for key in ("type", "items", "values"):
        if key in plain:
            plain[key] = physical(plain[key])
    if isinstance(plain.get("fields"), list):
        plain["fields"] = [physical(member) for member in plain["fields"]]
    return plain


def _kind(node: Node) -> Node:
    if isinstance(node, list):
        return "union"
    return node["type"] if isinstance(node, dict) else node


@dataclass(slots=True)
class _Guard:
    """Walks a parsed schema once per named type; sums are kept, so a schema of doublings costs no time to
    refuse.
    """

    named: Mapping[str, Node]
    known: dict[str, tuple[int, int]] = field(default_factory=dict)
    open: set[str] = field(default_factory=set)
    path: list[str] = field(default_factory=list)

    @property
    def here(self) -> str:
        """The field that is being measured, as its path from the top."""
        return f"Field {'.'.join(self.path)} of the schema" if self.path else "The schema"

    def check(self, node: Node, name: str) -> None:
        nodes, _ = self.measure(node, 0)
        if nodes > NODES_MAX:
            raise SchemaRefused(f"Schema {name} expands to {nodes} types, more than {NODES_MAX}.")

    def measure(self, node: Node, depth: int) -> tuple[int, int]:
        """(types once written out, least bytes of a value)."""
        if depth > DEPTH_MAX:
            raise SchemaRefused(f"{self.here} nests deeper than {DEPTH_MAX} types.")
        if isinstance(node, list):
            branches = [self.measure(branch, depth + 1) for branch in node]
            return 1 + sum(nodes for nodes, _ in branches), 1
        kind = _kind(node)
        if kind in PRIMITIVES:
            return 1, {"null": 0, "float": 4, "double": 8}.get(kind, 1)
        if isinstance(kind, (dict, list)):
            return self.measure(kind, depth + 1)
        if kind in ("array", "map"):
            nodes, least = self.measure(node["items" if kind == "array" else "values"], depth + 1)
            if kind == "array" and least == 0:
                raise SchemaRefused(
                    f"{self.here} has an array whose items take no bytes: a few bytes could fill memory; give its items a field."
                )
            return 1 + nodes, 1
        if kind == "enum":
            return 1, 1
        if kind == "fixed":
            return 1, int(node["size"])
        return self._named(node, depth) if kind in ("record", "error") else self._reference(str(kind), depth)

    def _reference(self, name: str, depth: int) -> tuple[int, int]:
        if name in self.open:
            raise SchemaRefused(
                f"{self.here} is of type {name}, which contains itself: recursive schemas are not accepted."
            )
        if name in self.known:
            return self.known[name]
        return self.measure(self.named[name], depth + 1)

    def _named(self, node: Mapping[str, Any], depth: int) -> tuple[int, int]:
        name = str(node["name"])
        if name in self.open:
            raise SchemaRefused(
                f"{self.here} is of type {name}, which contains itself: recursive schemas are not accepted."
            )
        self.open.add(name)
        members = [self._field(member, depth + 1) for member in node["fields"]]
        self.open.discard(name)
        self.known[name] = 1 + sum(nodes for nodes, _ in members), sum(least for _, least in members)
        return self.known[name]

    def _field(self, member: Mapping[str, Any], depth: int) -> tuple[int, int]:
        self.path.append(str(member["name"]))
        found = self.measure(member["type"], depth)
        self.path.pop()
        return found
