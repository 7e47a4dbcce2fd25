"""Defaults of fields as Python has them: JSON spells bytes as a text, and leaves out of a record what its own fields default."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Final

from pipeline.codec.schema import AvroSchema, Node, SchemaRefused, parse

_IN_JSON: Final[Mapping[str, type | tuple[type, ...]]] = {
    "null": type(None), "boolean": bool, "int": int, "long": int, "float": (int, float), "double": (int, float),
    "string": str, "bytes": str, "enum": str, "fixed": str, "array": list, "map": dict, "record": dict, "error": dict,
}  # fmt: skip
_RECORDS: Final = ("record", "error")
_CHANGEABLE: Final = (dict, list, tuple)


def with_defaults(schema: AvroSchema) -> tuple[Node, Mapping[int, Any]]:
    """(the schema's parsed form for fastavro, its defaults that can be changed by their id).

    fastavro gives the defaults of fields as they stand in the schema, the same object for each value: see `unshared`.
    Raises SchemaRefused as `default_of` does.
    """
    own, shared = parse(schema.text), dict[int, Any]()  # the nodes of the one that is given stay as they are
    for node in own.named.values():
        if node["type"] in _RECORDS:
            node["fields"] = [_with_default(member, schema) for member in node["fields"]]
            defaults = [member.get("default") for member in node["fields"]]
            shared.update((id(each), each) for each in defaults if isinstance(each, _CHANGEABLE))
    top = own.named.get(own.name)  # the node but for fastavro's marks
    return own.node if top is None else {**own.node, **top}, shared


def _with_default(member: Mapping[str, Any], schema: AvroSchema) -> dict[str, Any]:
    return {**member, "default": default_of(member, schema)} if "default" in member else dict(member)


def unshared(value: Any, shared: Mapping[int, Any]) -> Any:
    """The value, changed in place, with copies of its own for the defaults in it: what somebody adds to one is in no other value."""
    if id(value) in shared:
        return deepcopy(value)
    if isinstance(value, dict):
        for name, each in value.items():
            if isinstance(each, _CHANGEABLE):
                value[name] = unshared(each, shared)
    elif isinstance(value, list):
        value[:] = [unshared(each, shared) if isinstance(each, _CHANGEABLE) else each for each in value]
    elif isinstance(value, tuple):  # a record of several in a union, and its name
        return value[0], unshared(value[1], shared)
    return value


def default_of(member: Mapping[str, Any], schema: AvroSchema) -> Any:
    """The default of a field that has one, as reading it from bytes gives it. Raises SchemaRefused where it is not of the field's type."""
    try:
        return _value(member["default"], member["type"], schema)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SchemaRefused(
            f"The default of {schema.name}.{member['name']} is none of its type ({error!r})."
        ) from error


def _value(default: Any, node: Node, schema: AvroSchema) -> Any:
    if isinstance(node, list):
        return _of_union(default, node, schema)
    kind = node["type"] if isinstance(node, dict) else node
    if isinstance(kind, (dict, list)):
        return _value(default, kind, schema)
    if kind in ("bytes", "fixed"):
        return default.encode("iso-8859-1")
    if kind in ("float", "double"):
        return float(default)
    if kind == "array":
        return [_value(each, node["items"], schema) for each in default]
    if kind == "map":
        return {name: _value(each, node["values"], schema) for name, each in default.items()}
    if kind in _RECORDS:
        given = {member["name"]: member["default"] for member in node["fields"] if "default" in member} | default
        return {member["name"]: _value(given[member["name"]], member["type"], schema) for member in node["fields"]}
    return _value(default, schema.named[kind], schema) if kind in schema.named else default


def _of_union(default: Any, branches: list[Node], schema: AvroSchema) -> Any:
    """Of the first branch that has such a value. Where several are records, their full name stands beside it."""
    options = [schema.named.get(branch, branch) if isinstance(branch, str) else branch for branch in branches]
    kinds = [option["type"] if isinstance(option, dict) else option for option in options]
    for option, kind in zip(options, kinds, strict=True):
        if isinstance(default, _IN_JSON.get(kind, ())) and (kind == "boolean" or not isinstance(default, bool)):
            value = _value(default, option, schema)
            return (option["name"], value) if kind in _RECORDS and sum(k in _RECORDS for k in kinds) > 1 else value
    raise ValueError("no branch of the union has such values")
