"""Making a plan is its preview: one scan of the spans counts what would be sent, and freezes where each partition ends."""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from operator import methodcaller
from pathlib import Path
from typing import Any, Protocol

from pipeline.codec.schema import AvroSchema
from pipeline.codec.scrub import scrub, tagged_texts
from pipeline.inspect.decoding import DictCodec, Shown, schema_topic, show
from pipeline.inspect.scan import read_batches
from pipeline.model.cluster import Cluster, Headers, Message, TopicPartition
from pipeline.model.errors import ConfigurationError
from pipeline.model.events import EVENT_TYPES
from pipeline.model.headers import headers_in
from pipeline.model.keys import key_text
from pipeline.model.scrubbing import Sensitive
from pipeline.replay.asking import Request, check_target, every_layout, kind_of, source_spec, spans_of, target_of
from pipeline.replay.census import SAMPLES_MAX, Census
from pipeline.replay.files import batches, check_target_file, count_records, file_records
from pipeline.replay.plan import ReplayPlan, Source, Span, Target, new_plan_id
from pipeline.replay.selecting import Selector, compiled, delivery_of

SHOWN_SAMPLES = 5
SAMPLE_CHARACTERS = 300
_partition = methodcaller("partition")
COPY_COST = 1.0
"""Writing a copy takes about as long as reading and judging a record for the preview did: for the expected time only."""

Scanned = Callable[[int, int], None]
"""(records read so far, records there are): for a progress bar."""


class ContractCodec(DictCodec, Protocol):
    """What is needed to show samples without what in them is personal."""

    def schema_of(self, topic: str, data: bytes | None, headers: Headers | None = None) -> AvroSchema | None: ...


def make_plan(
    cluster: Cluster,
    request: Request,
    codec: ContractCodec | None,
    now_ms: int,
    scanned: Scanned = lambda _done, _total: None,
    monotonic: Callable[[], float] = time.monotonic,
) -> ReplayPlan:
    """The plan with its preview. Nothing is written anywhere.

    Raises `ConfigurationError` (also `FilterError`) for what was asked wrongly, `ClusterUnavailable` when Kafka is away.
    """
    check_request(request)
    compiled(request.select, now_ms)  # a wrong filter is told before anything is read
    source, target, unprocessed = _placed(cluster, request)
    began = monotonic()
    scan = _Scan(cluster, request, target, codec, now_ms, scanned)
    if request.to_step is not None:
        from pipeline.replay.forking import cut_at_step

        source = cut_at_step(scan.read(source), source, request.select, request.to_step, codec)
    if request.limit:
        source = scan.limited(source, request.limit)
    counting = monotonic()
    census, selector, source = scan.count(source)
    counted = monotonic()
    scan.refuse_two_versions(source, census)
    last = scan.last(source, census)
    seconds = monotonic() - began
    plan = ReplayPlan(
        plan_id=new_plan_id(),
        created_ms=now_ms,
        who=request.who,
        source=source,
        select=request.select,
        target=target,
        fork=request.fork,
        to_step=request.to_step,
        replays_max=request.replays_max,
        rate=request.rate,
        last=last,
    )
    preview = _preview(plan, census, selector, codec, request.decode)
    preview |= {"not_processed_yet": unprocessed, "scan_s": round(seconds, 3), "inverted_keys": len(census.inverted)}
    preview["expected_s"] = round(expected_s(counted - counting, scan.looked_at, census.selected, plan.rate), 1)
    return replace(plan, preview=preview)


def expected_s(scan_s: float, looked_at: int, selected: int, rate: float) -> float:
    """How long one process may take: it reads what this plan's own scan read, at the speed it had here and now, and writes the copies; no
    faster than the plan's rate."""
    per_record_s = scan_s / looked_at if looked_at else 0.0
    return max(scan_s + COPY_COST * per_record_s * selected, selected / rate if rate else 0.0)


def _placed(cluster: Cluster, request: Request) -> tuple[Source, Target, int]:
    """The source with its spans, the target, and how many offsets the group will process anyway."""
    admin = cluster.admin()
    try:
        every = every_layout(admin, admin.topic_names(), request.group)
        kind = kind_of(request, every)
        if kind != "file":
            source_spec(admin, request.topic)
        target = target_of(request, admin, kind, every)
        if kind == "file":
            source, unprocessed = file_source(request.topic), 0
        else:
            source, unprocessed = spans_of(cluster, admin, request, kind)
        check_target(admin, target, source)
    finally:
        admin.close()
    return source, target, unprocessed


def file_source(path: str) -> Source:
    """A container file as a source of one partition. Raises `UndecodableError`."""
    return Source("file", path, 1, {0: Span(0, count_records(Path(path)))})


class _Scan:
    def __init__(
        self,
        cluster: Cluster,
        request: Request,
        target: Target,
        codec: DictCodec | None,
        now_ms: int,
        scanned: Scanned,
    ) -> None:
        self._cluster, self._request, self._target = cluster, request, target
        self._codec, self._now_ms, self._scanned = codec, now_ms, scanned
        self._last: dict[int, Message] = {}
        self.looked_at = 0
        """Records that the last pass read."""

    def _selector(self, source: Source) -> Selector:
        return Selector(source, self._request.select, self._target, self._now_ms, self._codec)

    def read(self, source: Source) -> Iterable[list[Message]]:
        """A partition ends where nothing more can be read: the first record of a transaction that is open now is behind the end."""
        total, self.looked_at = sum(span.size for span in source.spans.values()), 0
        starts = {TopicPartition(source.topic, p): span.start for p, span in source.spans.items()}
        ends = {TopicPartition(source.topic, p): span.end for p, span in source.spans.items()}
        found: Iterable[list[Message]]
        if source.kind == "file":
            end = source.spans[0].end
            found = ([m for m in each if m.offset() < end] for each in batches(file_records(Path(source.topic))))
        else:
            found = read_batches(self._cluster, starts, ends, None, stop_at_open=True)
        self._last = {}
        for messages in found:
            yield messages
            self._last |= dict(zip(map(_partition, messages), messages, strict=True))
            self.looked_at += len(messages)
            self._scanned(self.looked_at, total)

    def _frozen(self, source: Source) -> Source:
        """Each partition ends with the last record that was just read: a run waits neither for markers of transactions behind it, nor
        for what was not there yet."""
        if source.kind == "file":
            return source
        spans = {}
        for p, span in source.spans.items():
            last = self._last.get(p)
            spans[p] = (
                replace(span, end=span.start)
                if last is None
                else replace(span, end=last.offset() + 1, last_ms=last.timestamp()[1])
            )
        return replace(source, spans=spans)

    def count(self, source: Source) -> tuple[Census, Selector, Source]:
        selector = self._selector(source)
        total = sum(span.size for span in source.spans.values())
        census = Census(self._request.replays_max, -(-total // SAMPLES_MAX), source.kind == "dead_letters")
        for messages in self.read(source):
            census.add(list(selector.choose(messages)))
        return census, selector, self._frozen(source)

    def limited(self, source: Source, limit: int) -> Source:
        """The spans end so that the oldest `limit` chosen records are in them, partition by partition from the front."""
        heads: dict[int, list[tuple[int, int]]] = {p: [] for p in source.spans}
        selector = self._selector(source)
        for messages in self.read(source):
            for message in selector.choose(messages):
                found = heads[message.partition()]
                if len(found) <= limit:  # one more than is needed tells that there is more
                    found.append((message.timestamp()[1], message.offset()))
        if sum(map(len, heads.values())) <= limit:
            return self._frozen(source)
        ends = {p: span.start for p, span in source.spans.items()}
        queue = [(found[0][0], p, 0) for p, found in heads.items() if found]
        heapq.heapify(queue)
        for _ in range(limit):
            _, partition, index = heapq.heappop(queue)
            found = heads[partition]
            ends[partition] = found[index][1] + 1
            if index + 1 < len(found):
                heapq.heappush(queue, (found[index + 1][0], partition, index + 1))
        spans = {p: Span(span.start, ends[p], span.beginning) for p, span in source.spans.items()}
        return replace(source, spans=spans)

    def refuse_two_versions(self, source: Source, census: Census) -> None:
        """Two copies of a plan with one origin have one identity: the lane runs the first and settles the other unseen, and an edit
        would be lost. Raises `ConfigurationError`."""
        if self._target.kind != "lane" or source.kind == "topic" or not census.edited:
            return
        selector, known = self._selector(source), dict[tuple[str, int, int], str]()
        for messages in self.read(source):
            for message in selector.choose(messages):
                delivery = delivery_of(message)
                if delivery is None:
                    continue
                origin = (delivery.origin_topic, delivery.origin_partition, delivery.origin_offset)
                place = f"{message.partition()}:{message.offset()}"
                if origin in census.edited and known.setdefault(origin, place) != place:
                    raise ConfigurationError(
                        f"{known[origin]} and {place} are versions of one record, one of them edited, and its group would run the first "
                        "alone: send dead letters with `pipeline dlq redrive`, which takes the edited one, or choose among them here "
                        "(--where, --from-offset)"
                    )

    def last(self, source: Source, census: Census) -> dict[int, tuple[int, ...]]:
        """Where the records of inverted keys lie, in the order of their origins."""
        if not census.inverted:
            return {}
        selector = self._selector(source)
        found: dict[int, list[tuple[int, int]]] = {}
        for messages in self.read(source):
            for message in selector.choose(messages):
                if (message.partition(), message.key()) in census.inverted:
                    delivery = delivery_of(message)
                    origin = delivery.origin_offset if delivery is not None else message.offset()
                    found.setdefault(message.partition(), []).append((origin, message.offset()))
        return {partition: tuple(offset for _, offset in sorted(places)) for partition, places in found.items()}


def _preview(
    plan: ReplayPlan, census: Census, selector: Selector, codec: ContractCodec | None, decode: str
) -> dict[str, Any]:
    checked = _check(census.samples if decode != "none" else [], codec, census)
    return {
        "offsets": plan.offsets,
        "selected": census.selected,
        "loop_capped": census.loop_capped,
        "decoded_by_filter": selector.decoded,
        "partitions": {str(partition): count for partition, count in sorted(census.partitions.items())},
        "keys": [{"key": key_text(key), "records": count} for key, count in census.keys.most_common(10)],
        "distinct_keys": len(census.keys),
        "keys_are_lower_bounds": census.keys_forgotten,
        "types": {str(kind): count for kind, count in census.types.most_common(30)},
        "errors": dict(census.errors.most_common(20)),
        "histogram": [{"from_ms": start, "to_ms": end, "records": n} for start, end, n in census.histogram()],
        "target": plan.target.text,
        **checked,
    }


def _check(samples: list[Message], codec: ContractCodec | None, census: Census) -> dict[str, Any]:
    """How many of the samples decode, and fit the contract that this build has for their type."""
    found: Counter[str] = Counter()
    names: dict[bytes, str] = {}
    problems: Counter[str] = Counter()
    shown: list[Mapping[str, Any]] = []
    for message in samples:
        value = show(codec, message)
        found["undecodable" if value.problem else "decoded"] += 1
        data = message.value()
        if data is not None and data[:1] == b"\x00" and not value.problem:
            names.setdefault(data[:5], value.type.rpartition(".")[2])
        if value.problem:
            problems[value.problem[:200]] += 1
        elif value.type in EVENT_TYPES and isinstance(value.value, dict):
            try:
                EVENT_TYPES[value.type].read(value.value)
                found["valid"] += 1
            except ValueError as error:
                problems[str(error).splitlines()[0][:200]] += 1
        if len(shown) < SHOWN_SAMPLES:
            shown.append(_sample(message, value, codec))
    census.name_types(names)
    return {
        "checked": len(samples),
        "decoded": found["decoded"],
        "valid": found["valid"],
        "problems": dict(problems.most_common(5)),
        "samples": shown,
    }


def _sample(message: Message, value: Shown, codec: ContractCodec | None) -> dict[str, Any]:
    """As `pipeline dlq show` has it without `--reveal`: a plan is printed and kept, and nobody was asked why."""
    place, key, data = f"{message.partition()}:{message.offset()}", key_text(message.key()), message.value()
    text = f"[{len(data or b''):,} bytes, not decoded: what is personal in them is not known]"
    if not value.problem:
        schema = None if codec is None else codec.schema_of(schema_topic(message), data, headers_in(message))
        text = str(scrub(value.value, schema))[:SAMPLE_CHARACTERS]
        if key is not None and schema is not None:
            key = Sensitive(tagged_texts(value.value, schema)).scrub(key)
    return {"place": place, "key": key, "type": value.type, "value": text}


def check_request(request: Request) -> None:
    """What does not need a cluster to be seen. Raises `ConfigurationError`."""
    if request.decode not in ("some", "none"):
        raise ConfigurationError(f"--decode {request.decode!r:.40} must be some or none")
    if not 0 <= request.rate < math.inf:
        raise ConfigurationError(
            f"--rate {request.rate:g} must be a number of records per second; 0: as fast as it goes"
        )
    if request.from_offsets and request.kind == "file":
        raise ConfigurationError(
            "--from-offset needs --topic: a file is taken from its beginning, choose with --key and --where"
        )
    if (request.to_step is not None or request.fork is not None) and len(request.select.keys) != 1:
        raise ConfigurationError("--to-step and --fork-run are about one run: name it with one --key RUN_ID")
    if request.group and (request.to_topic or request.to_file):
        other = "--to-topic" if request.to_topic else "--to-file"
        raise ConfigurationError(
            f"--group and {other} exclude each other: --group {request.group} sends into that group's replay lane, which nobody else "
            + ("reads, and all groups that read a topic see what goes there" if request.to_topic else "reads")
            + "; leave one of them out"
        )
    if request.to_file:
        if request.kind == "file":
            raise ConfigurationError(
                "--from-file and --to-file exclude each other: a replay reads from Kafka or writes to it"
            )
        check_target_file(Path(request.to_file))
    if request.fork is not None and not request.to_topic:
        raise ConfigurationError("--fork-run writes new events: name their topic with --to-topic (no lane takes them)")
