"""Which field of a value does not fit its schema: asked only once encoding has failed, so it may be slow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastavro.validation import validate

from pipeline.codec.schema import AvroSchema
from pipeline.codec.writer import WRITE_ERRORS, compile_writer


def misfit(schema: AvroSchema, fields: Mapping[str, Any], error: Exception, bytes_form: str = "") -> str:
    """One sentence with the field's path and what was expected, never with a text value. `bytes_form`: how bytes are to be written."""
    for member in schema.node["fields"]:
        name = member["name"]
        if name not in fields:
            if "default" not in member:
                return f"{schema.name} lacks field {name}."
            continue
        try:
            compile_writer(_single(schema, member))(fields, b"")
            fits = validate(fields[name], member["type"], raise_errors=False)
        except WRITE_ERRORS:
            fits = False
        if not fits:
            # The value itself stays out of the message: it may be personal or secret, and messages get
            # logged.
            what, wanted = _describe(fields[name]), _type_name(member["type"])
            hint = f": write bytes as {bytes_form}" if bytes_form and "bytes" in wanted.split(" or ") else ""
            return f"{schema.name}.{name} is {what}, which does not fit {wanted}{hint}."
    return f"{schema.name} can't be encoded ({type(error).__name__}); check its fields against schemas/."


def _describe(value: Any) -> str:
    return str(value) if value is None or isinstance(value, (bool, int, float)) else f"a {type(value).__name__}"


def _single(schema: AvroSchema, member: Mapping[str, Any]) -> AvroSchema:
    node = {**schema.node, "fields": [member]}
    return replace(schema, node=node)


def _type_name(node: Any) -> str:
    if isinstance(node, list):
        return " or ".join(map(_type_name, node))
    if isinstance(node, dict):
        return f"one of {', '.join(node['symbols'])}" if node["type"] == "enum" else _type_name(node["type"])
    return str(node)
