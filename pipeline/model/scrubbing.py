"""What must not be shown, and how it is masked: tags, and given values wherever a text quotes them.

A mask says what was there: `[pii]`, `[secret]`. Everything here is linear in the text; it runs on failures, on display and,
where that is set, before an event is published (`ScrubPolicy`).
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, quote_plus

from pipeline.model.errors import ConfigurationError
from pipeline.model.secret_shapes import mask_secrets

PII, SECRET = "pii", "secret"
TAGS = frozenset({PII, SECRET})
"""Tags of fields, in a contract and in its class: personal data, and what gives access."""

TEXT_MAX = 65_536
"""Characters of one text that are searched for given values; of a longer one only its two ends are kept."""
VALUES_MAX = 20_000
"""Values that texts are searched for; where there are more, nothing of the texts is shown."""
VALUE_MIN = 3
"""Shorter values are not looked for: they would be found in every word."""
WORD_MAX = 8
"""Up to here a value is only found as a whole word."""
QUOTE_MIN = 12
"""So much of a value's beginning or end is recognised where a text quotes only a part of it."""


@dataclass(frozen=True, slots=True)
class Tag:
    """Marks a field of a typed value, as `Annotated[str, Tag("pii")]`. `json`: its text is JSON, and so must the mask be."""

    name: str
    json: bool = False

    @property
    def mask(self) -> str:
        return f'"{mask(self.name)}"' if self.json else mask(self.name)


def mask(tag: str) -> str:
    """What stands in the place of a value with this tag."""
    return f"[{tag}]"


@dataclass(frozen=True, slots=True)
class ScrubPolicy:
    """What is masked in events before they are published (`PIPELINE_SCRUB`).

    `tags`: whole fields with one of these. `shapes`: in the other tagged fields, what looks like a secret.
    """

    tags: frozenset[str] = frozenset()
    shapes: bool = True

    @classmethod
    def of(cls, text: str) -> ScrubPolicy:
        """From "", "pii,secret", or "off" for nothing at all. Raises ConfigurationError naming the setting."""
        if text.strip() == "off":
            return cls(shapes=False)
        names = frozenset(part.strip() for part in text.split(",") if part.strip())
        if not names <= TAGS:
            raise ConfigurationError(f"scrub={text!r} must be a list of {' and '.join(sorted(TAGS))}, empty, or off")
        return cls(names)


# -- values, wherever a text quotes them

_MASKS = re.compile(rf"({'|'.join(re.escape(mask(tag)) for tag in sorted(TAGS))})\1+")
_ADDRESS = re.compile(r"[\w.+-]{1,64}@[\w.-]{2,253}\w")
_NUMBER = re.compile(r"\d(?:[-./ ]?\d){5,40}")
_BETWEEN = "\n\x00\n"


class Sensitive:
    """Values of one record that no text may quote. `scrub` masks them, whole or cut off, plain, escaped or encoded in a URL.

    What is paraphrased, or a word out of the middle of a long text, is not recognised: only whole values, their beginnings
    and ends, strings of a JSON document, and addresses and long numbers in them are.
    """

    def __init__(self, values: Iterable[tuple[str, str]] = ()) -> None:
        """`values`: (tag, value)."""
        found: dict[str, str] = {}
        for tag, value in values:
            for part in _parts(value):
                if len(part) >= VALUE_MIN:
                    found.setdefault(part, tag)
                    if len(found) > VALUES_MAX:
                        break
        self._too_many = len(found) > VALUES_MAX
        longest = sorted(found, key=len, reverse=True)
        self._values = [(value, found[value]) for value in longest]

    def scrub(self, text: str) -> str:
        """The text without these values, and without what looks like a secret."""
        if not text:
            return text
        if self._too_many:
            return f"(left out: it may quote more than {VALUES_MAX} tagged values)"
        if len(text) <= TEXT_MAX:
            return self._masked(mask_secrets(text))
        longest = max((len(form) for value, _ in self._values for form in _forms(value, TEXT_MAX)), default=0)
        return _both_ends(text, lambda part: self._masked(mask_secrets(part)), longest)

    def scrub_all(self, *texts: str) -> list[str]:
        """`scrub` of each; at once where they are short, which is the rule."""
        joined = _BETWEEN.join(texts)
        if len(joined) <= TEXT_MAX:
            found = self.scrub(joined).split(_BETWEEN)
            if len(found) == len(texts):
                return found
        return [self.scrub(text) for text in texts]

    def _masked(self, text: str) -> str:
        for value, tag in self._values:
            put = mask(tag)
            for form in _forms(value, len(text)):
                if form in text:
                    text = _replaced(text, form, put)
            if len(value) > QUOTE_MIN:
                text = _cut_off(text, value, put)
        return _MASKS.sub(r"\1", text) if self._values else text


def _parts(value: str) -> Iterator[str]:
    """The value, the strings and numbers of the JSON document it may be, and addresses and long numbers in it."""
    yield value
    stripped = value.strip()
    if stripped != value:
        yield stripped
    if stripped[:1] in ("{", "[") and len(value) <= TEXT_MAX:
        with contextlib.suppress(ValueError, RecursionError):
            yield from _leaves(json.loads(value))
    if "@" in value:
        yield from (found[0] for found in _ADDRESS.finditer(value, 0, TEXT_MAX))
    yield from (found[0] for found in _NUMBER.finditer(value, 0, TEXT_MAX))


def _leaves(document: Any) -> Iterator[str]:
    queue = [document]
    while queue:
        node = queue.pop()
        if isinstance(node, dict):
            queue.extend(node.values())
        elif isinstance(node, list):
            queue.extend(node)
        elif isinstance(node, str) or (isinstance(node, (int, float)) and len(str(node)) >= 6):
            yield str(node)


def _forms(value: str, longest: int) -> Iterable[str]:
    """How texts write a value: as it is, in repr, in JSON, in ASCII, in a URL. None that can't stand in a text so long."""
    if len(value) > longest or (value.isalnum() and value.isascii()):
        return (value,)
    raw = value.encode("utf-8", "replace")
    forms = [value, repr(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]]
    if not value.isascii():
        forms += (json.dumps(value)[1:-1], ascii(value)[1:-1])
    forms += (quote(raw), quote(raw, safe=""), quote_plus(raw))
    return dict.fromkeys(forms)


def _replaced(text: str, form: str, put: str) -> str:
    if len(form) > WORD_MAX:
        return text.replace(form, put)
    return re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", put, text)


def _cut_off(text: str, value: str, put: str) -> str:
    """Where a text quotes only a beginning or an end of the value, as shortened error messages do."""
    begin, end = value[: len(text)], value[-len(text) :]
    for form in {begin: 0, repr(begin)[1:-1]: 0}:
        text = _quoted(text, form, put)
    for form in {end: 0, repr(end)[1:-1]: 0}:  # an end is the beginning of both turned round
        if form[-QUOTE_MIN:] in text:
            text = _quoted(text[::-1], form[::-1], put[::-1])[::-1]
    return text


def _quoted(text: str, form: str, put: str) -> str:
    """Without every beginning of `form` that is long enough; linear, however often it occurs."""
    head, pieces, done = form[:QUOTE_MIN], list[str](), 0
    while (at := text.find(head, done)) >= 0:
        after = at + QUOTE_MIN
        pieces += (text[done:at], put)
        done = after + _common(text[after : at + len(form)], form[QUOTE_MIN:])
    return "".join((*pieces, text[done:])) if pieces else text


def _common(left: str, right: str) -> int:
    """Length of the common beginning."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def _both_ends(text: str, clean: Callable[[str], str], longest: int) -> str:
    """The two ends of a very long text, clean: what the cut may have left half is dropped too."""
    half = TEXT_MAX // 2
    head, tail = clean(text[:half]), clean(text[-half:])
    drop = max(longest, 1_024)
    return f"{head[: max(0, len(head) - drop)]} ... {tail[drop:]}"
