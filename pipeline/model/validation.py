"""What pydantic says is wrong with a value, for a sentence to a user."""

from __future__ import annotations

from pydantic import ValidationError


def first_fault(error: ValidationError) -> tuple[str, str]:
    """Where (dotted; empty: the value as a whole) and what, of the first thing that is wrong. Never the value itself."""
    first = error.errors(include_url=False, include_input=False)[0]
    return ".".join(map(str, first["loc"])), first["msg"]
