"""Whether values written with one schema can be read with another, by Avro's schema resolution rules.

The verdict is about every value the writer's schema allows: one branch or symbol that the reader could not
take is a problem. (The Avro specification, "Schema Resolution"; levels as Confluent's registry names them.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.codec.schema import AvroSchema, Node
from pipeline.model.errors import ConfigurationError, IncompatibleSchema

LEVELS = (
    "NONE",
    "BACKWARD",
    "BACKWARD_TRANSITIVE",
    "FORWARD",
    "FORWARD_TRANSITIVE",
    "FULL",
    "FULL_TRANSITIVE",
)

_PROMOTIONS = {
    "int": {"long", "float", "double"},
    "long": {"float", "double"},
    "float": {"double"},
    "string": {"bytes"},
    "bytes": {"string"},
}


def problems(reader: AvroSchema, writer: AvroSchema) -> list[str]:
    """Why `reader` can't read everything written with `writer`, each with the field's path; empty when it
    can.
    """
    return _Resolution(reader, writer).between(reader.node, writer.node, "")


def check_versions(schema: AvroSchema, earlier: Sequence[AvroSchema], level: str) -> None:
    """Hold a schema to a level against its earlier versions, oldest first.

    Raises IncompatibleSchema naming the version and every problem, ConfigurationError for an unknown level.
    """
    if level not in LEVELS:
        raise ConfigurationError(f"Compatibility level {level!r} of {schema.name} is not one of {', '.join(LEVELS)}.")
    numbered = list(enumerate(earlier, 1))
    for number, version in numbered if level.endswith("_TRANSITIVE") else numbered[-1:]:
        found: list[str] = []
        if level.startswith(("BACKWARD", "FULL")):
            found += [f"it can't read version {number}: {problem}" for problem in problems(schema, version)]
        if level.startswith(("FORWARD", "FULL")):
            found += [f"version {number} can't read it: {problem}" for problem in problems(version, schema)]
        if found:
            raise IncompatibleSchema(f"{schema.name} is not {level}: {'; '.join(found)}.")


def _kind(node: Node) -> str:
    if isinstance(node, list):
        return "union"
    kind = node["type"] if isinstance(node, Mapping) else node
    return str(kind)


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class _Resolution:
    reader: AvroSchema
    writer: AvroSchema

    def between(self, read: Node, wrote: Node, path: str) -> list[str]:
        read, wrote = _written_out(read, self.reader), _written_out(wrote, self.writer)
        if isinstance(wrote, list):
            return [found for branch in wrote for found in self.between(read, branch, path)]
        if isinstance(read, list):
            attempts = [self.between(branch, wrote, path) for branch in read]
            if [] in attempts:
                return []
            near = [found for branch, found in zip(read, attempts, strict=True) if self._alike(branch, wrote)]
            return near[0] if near else [f"{path or 'the type'} can be {_label(wrote)}, which the reader lacks"]
        kind, wrote_kind = _kind(read), _kind(wrote)
        if kind == wrote_kind or {kind, wrote_kind} <= {"record", "error"}:
            return self.same_kind(kind, read, wrote, path)
        if kind in _PROMOTIONS.get(wrote_kind, ()):
            return []
        return [f"{path or 'the type'} is {_label(wrote)} and is read as {_label(read)}"]

    def _alike(self, read: Node, wrote: Node) -> bool:
        return _kind(_written_out(read, self.reader)) == _kind(wrote)

    def same_kind(self, kind: str, read: Node, wrote: Node, path: str) -> list[str]:
        if kind == "array":
            return self.between(read["items"], wrote["items"], f"{path}[]")
        if kind == "map":
            return self.between(read["values"], wrote["values"], f"{path}{{}}")
        if kind not in ("record", "error", "enum", "fixed"):
            return []
        names = {_last_part(read["name"]), *map(_last_part, read.get("aliases", ()))}
        if _last_part(wrote["name"]) not in names:
            return [f"{path or 'the type'} is {_label(wrote)} and is read as {_label(read)}"]
        if kind == "enum":
            return _enum(read, wrote, path)
        if kind == "fixed":
            same = read["size"] == wrote["size"]
            return [] if same else [f"{path or 'the type'} has {wrote['size']} bytes and is read as {read['size']}"]
        return self.record(read, wrote, path)

    def record(self, read: Node, wrote: Node, path: str) -> list[str]:
        written = {member["name"]: member for member in wrote["fields"]}
        found: list[str] = []
        for member in read["fields"]:
            name = f"{path}.{member['name']}" if path else member["name"]
            source = next((written[n] for n in (member["name"], *member.get("aliases", ())) if n in written), None)
            if source is not None:
                found += self.between(member["type"], source["type"], name)
            elif "default" not in member:
                found.append(f"{name} is not written and has no default")
        return found


def _enum(read: Node, wrote: Node, path: str) -> list[str]:
    lost = [symbol for symbol in wrote["symbols"] if symbol not in read["symbols"]]
    if lost and "default" not in read:
        return [f"{path or 'the type'} can be {', '.join(lost)}, which the reader's enum lacks without a default"]
    return []


def _written_out(node: Node, schema: AvroSchema) -> Node:
    """The node itself where a name refers to a type, and without a wrapping {"type": {...}}."""
    while True:
        if isinstance(node, str) and node in schema.named:
            node = schema.named[node]
        elif isinstance(node, Mapping) and isinstance(node["type"], (dict, list)):
            node = node["type"]
        elif isinstance(node, Mapping) and node["type"] in schema.named:
            node = schema.named[node["type"]]
        else:
            return node


def _label(node: Any) -> str:
    if isinstance(node, Mapping) and "name" in node:
        return f"{node['type']} {node['name']}"
    return f"a {_kind(node)}"
