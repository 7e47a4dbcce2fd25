"""`pipeline tail`: the records of a topic that match, decoded, as they come."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.access import BrokerOption, codec, known_topic, now_ms, open_admin, open_cluster
from pipeline.cli.output import clean, emit_json, line, text_of
from pipeline.cli.why import clock
from pipeline.filters import MessageRow, Row, compile_filter, quoted
from pipeline.model.cluster import TopicPartition
from pipeline.model.durations import parse_duration_ms
from pipeline.model.errors import ConfigurationError
from pipeline.model.headers import headers_in
from pipeline.model.keys import key_text

if TYPE_CHECKING:
    from pipeline.inspect.decoding import DictCodec, Shown
    from pipeline.model.cluster import Cluster, ClusterAdmin, Message

app = typer.Typer(rich_markup_mode=None, add_completion=False)

POLL_RECORDS = 500
POLL_S = 0.5
VALUE_CHARACTERS = 2_000
_PLACE = re.compile(r"^(\d+):(\d+)$")


@app.command()
def tail(
    topic: Annotated[str, typer.Argument(help="A source topic, a lane or dead letters.", metavar="TOPIC")],
    where: Annotated[
        str | None,
        typer.Option(
            "--where", help="Only records that match this filter, for example 'attempt >= 3'.", metavar="FILTER"
        ),
    ] = None,
    key: Annotated[str | None, typer.Option("--key", help="Only records with this key.")] = None,
    kind: Annotated[str | None, typer.Option("--type", help="Only this event type, for example ToolCall.")] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="earliest, latest (the default), or P:O (partition P from offset O).")
    ] = None,
    last: Annotated[
        str | None, typer.Option("--last", help="From so long ago, for example 1h; instead of --from.")
    ] = None,
    from_time: Annotated[
        str | None, typer.Option("--from-time", help="From this time (ISO 8601); instead of --from.", metavar="TIME")
    ] = None,
    to_time: Annotated[
        str | None, typer.Option("--to-time", help="Only what is older than this; does not follow.", metavar="TIME")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Stop after so many records.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Wait for new records, or stop at the end.")
    ] = True,
    headers: Annotated[bool, typer.Option("--headers", help="Show headers too.")] = False,
    broker: BrokerOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """Show the records of a topic, decoded, as they come. Ctrl-C stops.

    Example: pipeline tail agent.run.events --where 'type == "RunFailed" and tenant == "acme"' --last 1h
    """
    now = now_ms()
    matches = _matches(where, key, kind, now)
    span = _span(start, last, from_time, to_time, now)
    left = limit
    with open_cluster(broker) as cluster:
        with open_admin(cluster) as admin:
            starts, ends = _positions(cluster, admin, known_topic(admin, topic), span)
        shown = partial(_show, codec(broker))
        for batch in _batches(cluster, starts, ends if not follow or span.to_ms is not None else None):
            for message in batch:
                row = MessageRow(message, shown)
                if not span.holds(message.timestamp()[1]) or not matches(row):
                    continue
                _print(message, row.decoded, headers, as_json)
                if left is not None:
                    left -= 1
                    if left == 0:
                        return


def _matches(where: str | None, key: str | None, kind: str | None, now: int) -> Callable[[Row], bool]:
    """All the conditions as one filter; an error is about the text that was typed."""
    parts = [f"{field} == {quoted(text)}" for field, text in (("key", key), ("type", kind)) if text is not None]
    if where is not None:
        compile_filter(where, now)
        parts.append(f"({where})")
    return compile_filter(" and ".join(parts), now).matches if parts else lambda row: True


def _show(decoder: DictCodec, message: Message) -> Shown:
    from pipeline.inspect.decoding import show

    return show(decoder, message)


@dataclass(frozen=True, slots=True)
class _Span:
    """What part of the topic is shown: a position to start from, or times (milliseconds since the epoch, the end left out)."""

    start: str
    from_ms: int | None
    to_ms: int | None

    def holds(self, time_ms: int) -> bool:
        """Timestamps need not rise with offsets, so each record is asked."""
        return (self.from_ms is None or time_ms >= self.from_ms) and (self.to_ms is None or time_ms < self.to_ms)


def _span(start: str | None, last: str | None, from_time: str | None, to_time: str | None, now: int) -> _Span:
    from pipeline.replay.moments import parse_moment_ms

    given = [
        name for name, text in (("--from", start), ("--last", last), ("--from-time", from_time)) if text is not None
    ]
    if len(given) > 1:
        raise ConfigurationError(f"{' and '.join(given)} each say where to start: give one of them")
    from_ms = None if last is None else now - parse_duration_ms(last, "--last")
    if from_time is not None:
        from_ms = parse_moment_ms(from_time, "--from-time", now)
    to_ms = None if to_time is None else parse_moment_ms(to_time, "--to-time", now)
    if from_ms is not None and to_ms is not None and from_ms >= to_ms:
        raise ConfigurationError(f"--to-time {to_time} is not after the start: no record lies between them")
    if start is None:
        start = "earliest" if to_ms is not None and from_ms is None else "latest"
    return _Span(start, from_ms, to_ms)


def _positions(
    cluster: Cluster, admin: ClusterAdmin, topic: str, span: _Span
) -> tuple[Mapping[TopicPartition, int], Mapping[TopicPartition, int]]:
    """Where to start, and the ends as they are now."""
    spec = admin.topics([topic]).get(topic)
    if spec is None:
        raise ConfigurationError(f"topic {topic!r} does not exist: `pipeline topics list --all` shows those that do")
    places = [TopicPartition(topic, p) for p in range(spec.partitions)]
    ends = admin.end_offsets(places)
    if span.from_ms is not None:
        return _since(cluster, places, span.from_ms), ends
    if span.start == "latest":
        return ends, ends
    if span.start == "earliest":
        return admin.beginning_offsets(places), ends
    found = _PLACE.match(span.start)
    if found is None:
        raise ConfigurationError(f"--from {span.start!r} must be earliest, latest, or P:O such as 3:1500")
    place, offset = TopicPartition(topic, int(found[1])), int(found[2])
    if place not in ends:
        raise ConfigurationError(f"--from {span.start}: topic {topic} has partitions 0 to {spec.partitions - 1}")
    beginning = admin.beginning_offsets([place])[place]
    if offset > ends[place]:
        raise ConfigurationError(
            f"--from {span.start}: partition {place.partition} of {topic} has offsets {beginning} to {ends[place]} (its end)"
        )
    return {place: max(offset, beginning)}, {place: ends[place]}


def _since(cluster: Cluster, places: list[TopicPartition], time_ms: int) -> Mapping[TopicPartition, int]:
    from pipeline.model.cluster import ConsumerPolicy

    consumer = cluster.consumer(ConsumerPolicy(group="pipeline-tail", client_id="pipeline-tail"))
    try:
        return consumer.offsets_at(places, time_ms, 10.0)
    finally:
        consumer.close()


def _batches(
    cluster: Cluster, starts: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int] | None
) -> Iterator[list[Message]]:
    """Up to `ends`, or for ever when None."""
    if ends is not None:
        from pipeline.inspect.scan import read_batches

        yield from read_batches(cluster, starts, ends, deadline_s=None, stop_at_open=True)
        return
    reader = cluster.reader("pipeline-tail")
    try:
        reader.assign(starts)
        while True:
            yield reader.poll(POLL_RECORDS, POLL_S)
    finally:
        reader.close()


def _delivery(message: Message) -> dict[str, Any]:
    """What a lane record's headers say of its delivery; empty on other topics."""
    from pipeline.model.headers import HeaderError, decode

    try:
        found = decode(headers_in(message))
    except HeaderError:
        return {}
    return {
        "attempt": found.attempt,
        "hop": found.hop,
        "group": found.group,
        "origin": f"{found.origin_topic}/{found.origin_partition}/{found.origin_offset}",
        "due_ms": found.due_ms or None,
        "error": ": ".join(part for part in (found.error.error_type, found.error.message) if part) or None,
    }


def _print(message: Message, shown: Shown, headers: bool, as_json: bool) -> None:
    import json

    from pipeline.dead_letters import forms
    from pipeline.inspect.records import event_id

    time_ms = message.timestamp()[1]
    delivery, value = _delivery(message), forms.shown(shown.value)
    if as_json:
        out: dict[str, Any] = {
            "topic": message.topic(),
            "partition": message.partition(),
            "offset": message.offset(),
            "timestamp_ms": time_ms,
            "key": key_text(message.key()),
            "event_id": event_id(headers_in(message)),
            "type": shown.type,
            "value": value,
        }
        if shown.problem:
            out["problem"] = shown.problem
        if delivery:
            out["delivery"] = delivery
        if headers:
            out["headers"] = {name: text_of(value, 8_192) for name, value in headers_in(message) or ()}
        emit_json(out)
        return
    text = clean(value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False))
    if len(text) > VALUE_CHARACTERS:
        text = text[: VALUE_CHARACTERS - 1] + "…"
    name = clean(shown.type.rpartition(".")[2])
    line(f"{clock(time_ms)} {message.partition()}:{message.offset()} {text_of(message.key())} {name} {text}")
    if delivery:
        error = f", {clean(delivery['error'])}" if delivery["error"] else ""
        line(
            f"    attempt {delivery['attempt']}, hop {delivery['hop']}, from {clean(delivery['origin'])}{error}", "dim"
        )
    if shown.problem:
        line(f"    not decoded: {clean(shown.problem)}", "red")
    if headers:
        for header, raw in headers_in(message) or ():
            line(f"    {clean(header)}: {text_of(raw)}", "dim")
