"""Which records a plan chooses: by position, key and time first, then by filter. Values are decoded only when a filter asks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from pipeline.filters import Filter, MessageRow, compile_filter
from pipeline.inspect.decoding import DictCodec, Shown, show
from pipeline.model.cluster import Headers, Message
from pipeline.model.errors import SchemaUnavailable
from pipeline.model.headers import DeliveryHeaders, HeaderError, decode, headers_in
from pipeline.replay.plan import ReplayPlan, Selection, Source, Target

_Choose = Callable[[Sequence[Message]], Sequence[Message]]


def filter_text(select: Selection) -> str:
    """Types, tenants and the free text as one filter; empty when none is given."""
    parts = []
    for field, values in (("type", select.types), ("tenant", select.tenants)):
        if values:
            parts.append(f"{field} in ({', '.join(json.dumps(value, ensure_ascii=False) for value in values)})")
    if select.where:
        parts.append(f"({select.where})" if parts else select.where)
    return " and ".join(parts)


def compiled(select: Selection, now_ms: int) -> Filter | None:
    """The selection's filter. Raises `FilterError`, about the caller's own text first, with the column in it."""
    if select.where:
        compile_filter(select.where, now_ms)
    text = filter_text(select)
    return compile_filter(text, now_ms) if text else None


class Viewer:
    """Decodes for decisions: what can't be decoded is shown raw, but a registry that is away is raised, or records would be
    passed over that nobody could look into. `decoded` counts."""

    def __init__(self, codec: DictCodec | None) -> None:
        self._codec = codec
        self._away: SchemaUnavailable | None = None
        self.decoded = 0

    def decode_dict(self, topic: str, data: bytes | None, headers: Headers | None = None) -> tuple[str, object]:
        assert self._codec is not None, "asked with a codec only"
        return self._codec.decode_dict(topic, data, headers)

    def fetch(self, topic: str, schema_id: int) -> None:
        assert self._codec is not None, "asked with a codec only"
        try:
            self._codec.fetch(topic, schema_id)
        except SchemaUnavailable as away:
            self._away = away
            raise

    def show(self, message: Message) -> Shown:
        """Raises `SchemaUnavailable`."""
        self.decoded += 1
        shown = show(None if self._codec is None else self, message)
        if self._away is not None:
            away, self._away = self._away, None
            raise away
        return shown


class Selector:
    """Chooses among fetched records of the plan's source. `decoded` counts values that were looked into.

    Raises `SchemaUnavailable` where a filter asks for values and the registry is away."""

    def __init__(
        self, source: Source, select: Selection, target: Target, created_ms: int, codec: DictCodec | None
    ) -> None:
        self._viewer = Viewer(codec)
        self._steps: list[_Choose] = []
        self._positions = (
            None if select.positions is None else {p: frozenset(found) for p, found in select.positions.items()}
        )
        if self._positions is not None:
            self._steps.append(self._by_position)
        if select.keys:
            self._steps.append(_by_key(frozenset(select.keys)))
        if select.from_ms is not None or select.to_ms is not None:
            self._steps.append(_by_time(select.from_ms or 0, select.to_ms))
        if source.kind == "dead_letters" and target.kind == "lane":
            self._steps.append(_by_group(target))
        found = compiled(select, created_ms)
        if found is not None:
            self._steps.append(self._by_filter(found))

    @classmethod
    def of(cls, plan: ReplayPlan, codec: DictCodec | None) -> Selector:
        return cls(plan.source, plan.select, plan.target, plan.created_ms, codec)

    @property
    def decoded(self) -> int:
        return self._viewer.decoded

    def choose(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Those that are chosen, in the same order."""
        for step in self._steps:
            if not messages:
                break
            messages = step(messages)
        return messages

    def _by_position(self, messages: Sequence[Message]) -> Sequence[Message]:
        positions, none = self._positions or {}, frozenset[int]()
        return [m for m in messages if m.offset() in positions.get(m.partition(), none)]

    def _by_filter(self, found: Filter) -> _Choose:
        matches, shown = found.matches, self._viewer.show
        return lambda messages: [m for m in messages if matches(MessageRow(m, shown))]


def _by_key(keys: frozenset[bytes]) -> _Choose:
    return lambda messages: [m for m in messages if m.key() in keys]


def _by_time(from_ms: int, to_ms: int | None) -> _Choose:
    end = 1 << 62 if to_ms is None else to_ms
    return lambda messages: [m for m in messages if from_ms <= m.timestamp()[1] < end]


def _by_group(target: Target) -> _Choose:
    """A dead-letter topic may be shared: another group's records are not ours to send back."""

    def ours(message: Message) -> bool:
        delivery = delivery_of(message)
        return delivery is not None and delivery.group == target.group and delivery.origin_topic in target.topics

    return lambda messages: [m for m in messages if ours(m)]


def delivery_of(message: Message) -> DeliveryHeaders | None:
    """The delivery headers of a dead letter; None where they are not readable."""
    try:
        return decode(headers_in(message))
    except HeaderError:
        return None
