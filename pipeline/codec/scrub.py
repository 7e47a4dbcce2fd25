"""Values without what their contract marks as personal or secret: for people's eyes, for exports, and for error texts.

A field of an `.avsc` is tagged by `"pii": true`, `"secret": true`, or a list as `"tags": ["pii"]` (`"confluent:tags"` too).
A tag covers everything inside its field. Pure; a value is never changed in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from pipeline.codec.schema import AvroSchema, Node
from pipeline.model.scrubbing import SECRET, TAGS, mask
from pipeline.model.secret_shapes import mask_secrets, names_secret

__all__ = ["TAGS", "scrub", "tagged_texts", "tags_of"]

DEPTH_MAX: Final = 64


def tags_of(member: Mapping[str, Any]) -> frozenset[str]:
    """The tags of a field of a record schema."""
    named = {tag for tag in TAGS if member.get(tag) is True}
    for listed in (member.get("tags"), member.get("confluent:tags")):
        if isinstance(listed, (list, tuple)):
            named.update(tag.lower() for tag in listed if isinstance(tag, str))
    return TAGS & named


def scrub(value: Any, schema: AvroSchema | None, tags: frozenset[str] = TAGS) -> Any:
    """A decoded value with its tagged fields masked (`[pii]`, `[secret]`): nested, in arrays, maps and unions. Null stays null.

    With "secret" among `tags`, what looks like a secret is masked in every other text as well, and so is what stands under
    a name such as `api_key` in a map. That alone is done without a schema (JSON and bytes have no tags).
    The result is for showing: where a tagged field is no text, it does not fit the schema any more.
    """
    return _Scrubber(schema, tags).walk(value, schema.node if schema is not None else None, 0)


def tagged_texts(value: Any, schema: AvroSchema | None) -> Iterator[tuple[str, str]]:
    """(tag, text) of every value inside a tagged field, numbers included: what no error text may quote.

    What stands under a name such as `api_key` in a map counts as a secret; without a schema that is all.
    """
    yield from _Collector(schema).walk(value, schema.node if schema is not None else None, "", 0)


class _Walk:
    """Finds its way through a schema beside a value."""

    def __init__(self, schema: AvroSchema | None) -> None:
        self._named: Mapping[str, Node] = schema.named if schema is not None else {}

    def written_out(self, node: Node) -> Node:
        while True:
            if isinstance(node, str) and node in self._named:
                node = self._named[node]
            elif isinstance(node, dict) and isinstance(node["type"], (dict, list)):
                node = node["type"]
            elif isinstance(node, dict) and node["type"] in self._named and "fields" not in node:
                node = self._named[node["type"]]
            else:
                return node

    def branch(self, branches: list[Node], value: Any) -> tuple[Node, Any]:
        """(schema, value) of a union's branch; a record among several comes as (name, fields)."""
        options = [self.written_out(branch) for branch in branches]
        if isinstance(value, tuple) and len(value) == 2:
            for option in options:
                if isinstance(option, dict) and option.get("name") == value[0]:
                    return option, value[1]
        kinds = ("record", "error", "map") if isinstance(value, dict) else ("array",) if isinstance(value, list) else ()
        fitting = [option for option in options if isinstance(option, dict) and option["type"] in kinds]
        for option in fitting:
            if option["type"] != "map" and value.keys() <= {member["name"] for member in option["fields"]}:
                return option, value
        return (fitting[-1] if fitting else None), value


class _Scrubber(_Walk):
    def __init__(self, schema: AvroSchema | None, tags: frozenset[str]) -> None:
        super().__init__(schema)
        self._tags = tags

    def walk(self, value: Any, node: Node, depth: int) -> Any:
        if depth > DEPTH_MAX:
            return "[too deep]"
        node = self.written_out(node) if node is not None else None
        if isinstance(node, list):
            chosen, inner = self.branch(node, value)
            walked = self.walk(inner, chosen, depth)
            return walked if inner is value else (value[0], walked)
        if isinstance(value, str):
            return mask_secrets(value) if SECRET in self._tags else value
        if isinstance(value, Mapping):
            if isinstance(node, dict) and node.get("type") in ("record", "error"):
                return self._record(value, node, depth)
            inside = node["values"] if isinstance(node, dict) and node.get("type") == "map" else None
            return {key: self._entry(key, each, inside, depth) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            inside = node["items"] if isinstance(node, dict) and node.get("type") == "array" else None
            return [self.walk(each, inside, depth + 1) for each in value]
        return value

    def _record(self, value: Mapping[str, Any], node: Node, depth: int) -> dict[str, Any]:
        members = {member["name"]: member for member in node["fields"]}
        found: dict[str, Any] = {}
        for name, each in value.items():
            member = members.get(name)
            tags = tags_of(member) & self._tags if member is not None else None
            if tags:
                found[name] = _masked(each, mask(SECRET if SECRET in tags else min(tags)))
            else:
                found[name] = self.walk(each, member["type"] if member is not None else None, depth + 1)
        return found

    def _entry(self, key: Any, value: Any, node: Node, depth: int) -> Any:
        if SECRET in self._tags and isinstance(key, str) and isinstance(value, str) and names_secret(key):
            return mask(SECRET)
        return self.walk(value, node, depth + 1)


def _masked(value: Any, put: str) -> Any:
    """A list keeps its length, so that one sees how much there was."""
    if value is None:
        return None
    return [put] * len(value) if isinstance(value, list) else put


class _Collector(_Walk):
    def walk(self, value: Any, node: Node, tag: str, depth: int) -> Iterator[tuple[str, str]]:
        if value is None or depth > DEPTH_MAX:
            return
        node = self.written_out(node) if node is not None else None
        if isinstance(node, list):
            node, value = self.branch(node, value)
        if isinstance(value, Mapping):
            yield from self._mapping(value, node, tag, depth)
        elif isinstance(value, (list, tuple)):
            inside = node["items"] if isinstance(node, dict) and node.get("type") == "array" else None
            for each in value:
                yield from self.walk(each, inside, tag, depth + 1)
        elif tag and not isinstance(value, bool):
            yield tag, repr(value)[2:-1] if isinstance(value, bytes) else str(value)

    def _mapping(self, value: Mapping[str, Any], node: Node, tag: str, depth: int) -> Iterator[tuple[str, str]]:
        if isinstance(node, dict) and node.get("type") in ("record", "error"):
            for member in node["fields"]:
                tags = tags_of(member)
                own = SECRET if SECRET in tags else min(tags, default=tag)
                yield from self.walk(value.get(member["name"]), member["type"], own, depth + 1)
            return
        inside = node["values"] if isinstance(node, dict) and node.get("type") == "map" else None
        for key, each in value.items():
            if tag and isinstance(key, str):
                yield tag, key
            own = SECRET if isinstance(key, str) and names_secret(key) else tag
            yield from self.walk(each, inside, own, depth + 1)
