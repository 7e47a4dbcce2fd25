"""A run up to a step, and a run taken up again under a new id: values are read, changed and written anew."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from pipeline.inspect.decoding import DictCodec
from pipeline.model.cluster import Headers, Message
from pipeline.model.errors import CodecError
from pipeline.model.headers import EVENT_ID, DeliveryHeaders, headers_in, producer_headers, replay_count_of
from pipeline.model.partitioner import partition_of
from pipeline.replay.copying import Copies, Outgoing, own_headers
from pipeline.replay.plan import ReplayPlan, Selection, Source, Span
from pipeline.replay.results import Result
from pipeline.replay.selecting import Viewer

FORKED_FROM = "pl.replay.run"
"""The run that a forked event comes from."""
_ID_HEADERS = frozenset({EVENT_ID, "ce_id"})
_RUN_HEADERS = frozenset({"ce_subject", "ce_partitionkey"})


class EventCodec(DictCodec, Protocol):
    """What of the Avro codec is needed to write an event again."""

    def encode(self, value: Mapping[str, Any], *, topic: str, record_name: str | None = None) -> bytes: ...

    def prepare(self, topic: str) -> list[str]: ...


def cut_at_step(
    batches: Iterable[list[Message]], source: Source, select: Selection, step: int, codec: DictCodec | None
) -> Source:
    """The source, whose records `batches` are, with each partition ending before the run's first event of a later step."""
    keys, spans, viewer = frozenset(select.keys), dict(source.spans), Viewer(codec)
    cut: dict[int, int] = {}
    for messages in batches:
        for message in messages:
            if message.key() not in keys or message.partition() in cut:
                continue
            value = viewer.show(message).value
            at = value.get("step") if isinstance(value, dict) else None
            if isinstance(at, int) and at > step:
                cut[message.partition()] = message.offset()
    for partition, offset in cut.items():
        span = spans[partition]
        spans[partition] = Span(span.start, offset, span.beginning)
    return replace(source, spans=spans)


def forked_id(event_id: str, plan_id: str) -> str:
    """The id of an event's copy: the same whenever the plan is taken up again."""
    return hashlib.sha256(f"{plan_id}/{event_id}".encode()).hexdigest()[:32]


class Forker:
    """A `Copier` that writes each event again as one of the new run."""

    def __init__(self, plan: ReplayPlan, partitions: Mapping[str, int], codec: EventCodec) -> None:
        assert plan.fork is not None, "only a plan that forks has a new run"
        target = plan.target.topic_for(plan.source.topic)
        assert target is not None, "a fork names its topic"
        codec.prepare(target)  # or nothing can be encoded: what the registry lacks is told by the records that need it
        self._plan, self._codec, self._target = plan, codec, target
        self._viewer = Viewer(codec)
        self._run = plan.fork.run_id
        self._place = partition_of(self._run.encode(), partitions[target])

    def __call__(self, partition: int, messages: Sequence[Message]) -> Copies:
        copies, out = Copies(), Outgoing(self._target, self._place)
        for message in messages:
            offset = message.offset()
            shown = self._viewer.show(message)
            if shown.problem or not isinstance(shown.value, dict) or "run_id" not in shown.value:
                copies.kept.append(Result(offset, "undecodable"))
                copies.errors[offset] = shown.problem or f"it is {shown.type} without a run_id, so it can't be forked"
                continue
            old = str(shown.value.get("event_id") or f"{self._plan.source.topic}/{partition}/{offset}")
            new, fields = forked_id(old, self._plan.plan_id), dict(shown.value)
            run = str(fields["run_id"])
            fields |= {"event_id": new, "run_id": self._run}
            if shown.type.endswith(".RunStarted"):
                fields["parent_run_id"] = run
            try:
                value = self._encoded(shown.type, fields)
            except CodecError as error:
                copies.kept.append(Result(offset, "failed"))
                copies.errors[offset] = str(error)
                continue
            out.sources.append(offset)
            out.records.append((self._run.encode(), value, self._headers(message, new, run)))
        if out.sources:
            copies.outgoing.append(out)
        return copies

    def _encoded(self, kind: str, fields: Mapping[str, Any]) -> bytes:
        if kind == "json":
            return json.dumps(fields, separators=(",", ":")).encode()
        return self._codec.encode(fields, topic=self._target, record_name=kind)

    def _headers(self, message: Message, event_id: str, run: str) -> Headers:
        made: Headers = []
        for name, value in producer_headers(headers_in(message)):
            if name in _ID_HEADERS:
                made.append((name, event_id.encode()))
            elif name in _RUN_HEADERS:
                made.append((name, self._run.encode()))
            elif name != "traceparent":
                made.append((name, value))
        plan, time_ms = self._plan, message.timestamp()[1]
        delivery = DeliveryHeaders(
            attempt=0,
            hop=0,
            epoch=0,
            origin_topic=plan.source.topic,
            origin_partition=message.partition(),
            origin_offset=message.offset(),
            origin_timestamp_ms=max(0, time_ms),
            group="",
            replay_id=plan.plan_id,
            replay_count=replay_count_of(headers_in(message)) + 1,
        )
        return [
            *made,
            *own_headers(delivery, "topic"),
            (FORKED_FROM, run.encode()),
        ]
