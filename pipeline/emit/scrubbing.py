"""Events without secrets, and where that is set without personal data, before they are encoded or spooled."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeVar

from pipeline.model.events import TypedValue
from pipeline.model.scrubbing import ScrubPolicy, Tag
from pipeline.model.secret_shapes import MASK, mask_secrets, names_secret

V = TypeVar("V", bound=TypedValue)


@lru_cache(maxsize=256)
def tagged_fields(kind: type[TypedValue]) -> tuple[tuple[str, tuple[Tag, ...]], ...]:
    """(field, its tags) of the fields of a class that have any."""
    found = ((name, field.metadata) for name, field in kind.model_fields.items())
    tagged = ((name, tuple(tag for tag in metadata if isinstance(tag, Tag))) for name, metadata in found)
    return tuple((name, tags) for name, tags in tagged if tags)


@lru_cache(maxsize=256)
def _maps(kind: type[TypedValue]) -> tuple[str, ...]:
    return tuple(name for name, field in kind.model_fields.items() if field.annotation == dict[str, str])


class EventScrubber:
    """Made once per publisher; called with each event. One that has nothing to hide comes back as it is."""

    def __init__(self, policy: ScrubPolicy) -> None:
        self._tags = policy.tags
        self._shapes = policy.shapes
        self._fields: dict[type[TypedValue], tuple[tuple[tuple[str, tuple[Tag, ...]], ...], tuple[str, ...]]] = {}

    def __call__(self, event: V) -> V:
        if not self._tags and not self._shapes:
            return event
        kind = type(event)
        fields = self._fields.get(kind)
        if fields is None:
            fields = self._fields[kind] = tagged_fields(kind), _maps(kind) if self._shapes else ()
        values, changed = event.__dict__, dict[str, Any]()
        for name, tags in fields[0]:
            value = values[name]
            if value and isinstance(value, str):
                clean = self._clean(value, tags) if self._tags else mask_secrets(value)
                if clean is not value and clean != value:
                    changed[name] = clean
        for name in fields[1]:
            if values[name]:
                clean_map = {key: _entry(key, value) for key, value in values[name].items()}
                if clean_map != values[name]:
                    changed[name] = clean_map
        return event.model_copy(update=changed) if changed else event

    def _clean(self, value: str, tags: tuple[Tag, ...]) -> str:
        for tag in tags:
            if tag.name in self._tags:
                return tag.mask
        return mask_secrets(value) if self._shapes else value


def _entry(key: str, value: str) -> str:
    return MASK if names_secret(key) else mask_secrets(value)
