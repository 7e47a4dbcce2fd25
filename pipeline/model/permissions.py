"""What a worker process may do: the permissions that it was granted, held against those that a type of job needs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.model.errors import ConfigurationError

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}(?::[A-Za-z0-9_.-]{1,100}){0,9}")


@dataclass(frozen=True, slots=True)
class Permissions:
    """`granted`: names such as "tickets:read", "tickets:*" for all that begin with "tickets:", "*" for everything. Nothing is granted
    that is not named."""

    granted: frozenset[str] = frozenset()

    @classmethod
    def of(cls, text: str) -> Permissions:
        """From names with commas between. Raises ConfigurationError."""
        names = [name.strip() for name in text.split(",")]
        for name in filter(None, names):
            if name != "*" and not _NAME.fullmatch(name.removesuffix(":*")):
                raise ConfigurationError(
                    f"PIPELINE_PERMISSIONS has {name!r:.80}, which is no permission: write names such as tickets:read, tickets:* or *"
                )
        return cls(frozenset(filter(None, names)))

    def missing(self, needed: Iterable[str]) -> list[str]:
        """Of these the ones that are not granted, in order."""
        return sorted(name for name in needed if not self._grants(name))

    def _grants(self, name: str) -> bool:
        if name in self.granted or "*" in self.granted:
            return True
        area, colon, _ = name.rpartition(":")
        while colon:
            if f"{area}:*" in self.granted:
                return True
            area, colon, _ = area.rpartition(":")
        return False


def check_permissions(needed: object) -> frozenset[str]:
    """What a type of job needs, or a ConfigurationError: names only, since who needs everything needs nothing in particular."""
    if isinstance(needed, str) or not isinstance(needed, Iterable):
        raise ConfigurationError(f'permissions={needed!r:.80} must be a sequence of names such as ["tickets:read"]')
    names = frozenset(needed)
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigurationError(f"permissions has {name!r:.80}, which is no name such as tickets:read")
    return names
