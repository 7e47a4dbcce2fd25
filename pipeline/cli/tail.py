"""`pipeline tail`: the records of a topic, decoded, as they come."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.access import BrokerOption, codec, now_ms, open_admin, open_cluster, real
from pipeline.cli.output import clean, emit_json, key_json, line, text_of
from pipeline.cli.why import clock
from pipeline.model.cluster import TopicPartition
from pipeline.model.durations import parse_duration_ms
from pipeline.model.errors import ConfigurationError

if TYPE_CHECKING:
    from pipeline.inspect.decoding import Shown
    from pipeline.model.cluster import Cluster, ClusterAdmin, Message

app = typer.Typer(rich_markup_mode=None, add_completion=False)

POLL_RECORDS = 500
POLL_S = 0.5
VALUE_CHARACTERS = 2_000
_PLACE = re.compile(r"^(\d+):(\d+)$")


@app.command()
def tail(
    topic: Annotated[str, typer.Argument(help="A source topic, a lane or dead letters.", metavar="TOPIC")],
    key: Annotated[str | None, typer.Option("--key", help="Only records with this key.")] = None,
    kind: Annotated[str | None, typer.Option("--type", help="Only this event type, for example ToolCall.")] = None,
    start: Annotated[
        str, typer.Option("--from", help="earliest, latest, or P:O (partition P from offset O).")
    ] = "latest",
    last: Annotated[
        str | None, typer.Option("--last", help="From so long ago, for example 1h; instead of --from.")
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

    Example: pipeline tail agent.run.events --type RunFailed --last 1h
    """
    from pipeline.inspect.decoding import show

    left = limit
    with open_cluster(broker) as cluster:
        with open_admin(cluster) as admin:
            starts, ends = _positions(cluster, admin, _known(admin, topic), start, last)
        decoder = codec(broker)
        for message in _records(cluster, starts, None if follow else ends):
            if key is not None and message.key() != key.encode():
                continue
            shown = show(decoder, message)
            if kind is not None and kind not in (shown.type, shown.type.rpartition(".")[2]):
                continue
            _print(message, shown, headers, as_json)
            if left is not None:
                left -= 1
                if left == 0:
                    break


def _known(admin: ClusterAdmin, topic: str) -> str:
    """The topic's real name: as given, or else with the environment prefix."""
    return next((name for name in (topic, real(topic)) if admin.topics([name])), topic)


def _positions(
    cluster: Cluster, admin: ClusterAdmin, topic: str, start: str, last: str | None
) -> tuple[Mapping[TopicPartition, int], Mapping[TopicPartition, int]]:
    """Where to start, and the ends as they are now."""
    spec = admin.topics([topic]).get(topic)
    if spec is None:
        raise ConfigurationError(f"topic {topic!r} does not exist: `pipeline topics list --all` shows those that do")
    places = [TopicPartition(topic, p) for p in range(spec.partitions)]
    ends = admin.end_offsets(places)
    if last is not None:
        return _since(cluster, places, now_ms() - parse_duration_ms(last, "--last")), ends
    if start == "latest":
        return ends, ends
    if start == "earliest":
        return admin.beginning_offsets(places), ends
    found = _PLACE.match(start)
    if found is None:
        raise ConfigurationError(f"--from {start!r} must be earliest, latest, or P:O such as 3:1500")
    place = TopicPartition(topic, int(found[1]))
    if place not in ends:
        raise ConfigurationError(f"--from {start}: topic {topic} has partitions 0 to {spec.partitions - 1}")
    return {place: max(int(found[2]), admin.beginning_offsets([place])[place])}, {place: ends[place]}


def _since(cluster: Cluster, places: list[TopicPartition], time_ms: int) -> Mapping[TopicPartition, int]:
    from pipeline.model.cluster import ConsumerPolicy

    consumer = cluster.consumer(ConsumerPolicy(group="pipeline-tail", client_id="pipeline-tail"))
    try:
        return consumer.offsets_at(places, time_ms, 10.0)
    finally:
        consumer.close()


def _records(
    cluster: Cluster, starts: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int] | None
) -> Iterator[Message]:
    """Up to `ends`, or for ever when None."""
    if ends is not None:
        from pipeline.inspect.scan import read_to_end

        yield from read_to_end(cluster, starts, ends, deadline_s=24 * 3600.0)
        return
    reader = cluster.reader("pipeline-tail")
    try:
        reader.assign(starts)
        while True:
            yield from reader.poll(POLL_RECORDS, POLL_S)
    finally:
        reader.close()


def _delivery(message: Message) -> dict[str, Any]:
    """What a lane record's headers say of its delivery; empty on other topics."""
    from pipeline.model.headers import HeaderError, decode

    try:
        found = decode(message.headers())
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

    from pipeline.inspect.records import event_id

    time_ms = message.timestamp()[1]
    delivery = _delivery(message)
    if as_json:
        out: dict[str, Any] = {
            "topic": message.topic(),
            "partition": message.partition(),
            "offset": message.offset(),
            "timestamp_ms": time_ms,
            "key": key_json(message.key()),
            "event_id": event_id(message.headers()),
            "type": shown.type,
            "value": shown.value,
        }
        if shown.problem:
            out["problem"] = shown.problem
        if delivery:
            out["delivery"] = delivery
        if headers:
            out["headers"] = {name: text_of(value, 8_192) for name, value in message.headers() or ()}
        emit_json(out)
        return
    value = shown.value if isinstance(shown.value, str) else json.dumps(shown.value, default=str, ensure_ascii=False)
    text = clean(value)
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
        for header, raw in message.headers() or ():
            line(f"    {clean(header)}: {text_of(raw)}", "dim")
