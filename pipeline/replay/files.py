"""Replays to and from a file, by one process: a file has no partitions to share and no commits; its results say how far it is."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from pipeline.codec.container import ContainerWriter, StoredRecord, read_container
from pipeline.inspect.appending import append
from pipeline.inspect.decoding import DictCodec
from pipeline.inspect.scan import read_batches
from pipeline.model.cluster import Cluster, Headers, Message, TopicPartition
from pipeline.model.errors import ClusterError, ClusterUnavailable, ConfigurationError
from pipeline.model.headers import DeliveryHeaders, HeaderError, decode, encode
from pipeline.replay.copying import Copier
from pipeline.replay.executing import STALL_S
from pipeline.replay.flow import Flow
from pipeline.replay.following import Follower
from pipeline.replay.joining import CLIENT
from pipeline.replay.options import Meter, RunOptions, State, Tally
from pipeline.replay.pacing import Pace
from pipeline.replay.plan import ReplayPlan
from pipeline.replay.presence import Presence
from pipeline.replay.progress import Done
from pipeline.replay.recording import Recorder, action_of
from pipeline.replay.results import ResultBatch, entries, read_results, record_key, runs
from pipeline.replay.selecting import Selector
from pipeline.replay.sending import Sending

FETCH = 500
LOOK_EVERY_S, PAUSED_S, WAIT_S, STOP_S = 0.5, 0.05, 0.005, 30.0


class FileRecord(StoredRecord):
    """A stored record whose headers say where it comes from, as those of a lane do."""

    __slots__ = ()

    def headers(self) -> Headers | None:
        own = super().headers() or []
        with contextlib.suppress(HeaderError):
            decode(own)
            return own
        topic, partition, offset = self.place
        delivery = DeliveryHeaders(0, 0, 0, topic, partition, offset, max(0, self.timestamp()[1]), "")
        return encode(own, delivery)


def file_records(path: Path) -> Iterator[Message]:
    """Raises `UndecodableError`."""
    yield from read_container(path, FileRecord)


def count_records(path: Path) -> int:
    """Raises `UndecodableError`."""
    return sum(1 for _ in read_container(path, StoredRecord))


def batches(records: Iterator[Message], size: int = FETCH) -> Iterator[list[Message]]:
    while found := list(islice(records, size)):
        yield found


def is_there(path: Path, option: str) -> bool:
    """Raises `ConfigurationError` for a name that no file can have."""
    try:
        return path.exists()
    except OSError as error:
        raise ConfigurationError(f"{option} {str(path)!r:.200} can't be used: {error.strerror}") from None


def check_target_file(path: Path) -> None:
    """Can a replay put its file there? Raises `ConfigurationError`: nothing that is there is written over."""
    folder = path.parent
    if not os.path.isdir(folder):
        raise ConfigurationError(
            f"--to-file {path}: there is no directory {folder}; make it first, or name another file"
        )
    if is_there(path, "--to-file"):
        raise ConfigurationError(f"--to-file {path} is there already: move or delete it first, or name another file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigurationError(f"--to-file {path}: {folder} can't be written to; name a file elsewhere")


class ToFile:
    """Writes what is chosen to the plan's file. Ended before its end it leaves no file: run it again."""

    def __init__(self, cluster: Cluster, plan: ReplayPlan, options: RunOptions, codec: DictCodec | None) -> None:
        self._cluster, self._plan, self._options = cluster, plan, options
        self._selector = Selector.of(plan, codec)
        self._presence = Presence(cluster, plan, options)
        self._pace = Pace(plan.rate, time.monotonic())
        self._stopping = False

    def stop(self) -> None:
        self._stopping = True

    def close(self) -> None:
        self._presence.close()

    def run(self) -> Tally:
        try:
            self._presence.join()
            check_target_file(Path(self._plan.target.file))  # somebody may have been through just before us
            return self._write()
        finally:
            self.close()

    def _write(self) -> Tally:
        plan, counts, seen = self._plan, Counter[str](), 0
        offsets: dict[int, list[int]] = {partition: [] for partition in plan.source.spans}
        starts = {TopicPartition(plan.source.topic, p): span.start for p, span in plan.source.spans.items()}
        ends = {TopicPartition(plan.source.topic, p): span.end for p, span in plan.source.spans.items()}
        meter = Meter((plan.preview or {}).get("selected"), plan.offsets, time.monotonic())
        follower = Follower(self._cluster, self._options.control_topic, plan.plan_id)
        try:
            follower.catch_up()
            with ContainerWriter(Path(plan.target.file)) as writer:
                for messages in read_batches(self._cluster, starts, ends, None):
                    self._obey(follower, meter, counts, seen)
                    chosen = self._selector.choose(messages)
                    writer.add(chosen)
                    for message in chosen:
                        offsets[message.partition()].append(message.offset())
                    seen += len(messages)
                    counts["written"] += len(chosen)
                    self._pace.spent(len(chosen))
                    self._options.stage("sent")
                    self._options.progress(meter.tally("running", counts, seen, time.monotonic()))
        except _Stopped as stopped:
            return meter.tally(stopped.state, Counter(), seen, time.monotonic())
        except OSError as error:
            raise ClusterError(f"{plan.target.file} can't be written: {error.strerror or error}") from None
        finally:
            follower.close()
        self._record(offsets)
        return meter.tally("finished", counts, seen, time.monotonic())

    def _obey(self, follower: Follower, meter: Meter, counts: Counter[str], seen: int) -> None:
        """Wait while the plan is paused, or ahead of its rate. Raises `_Stopped`."""
        while True:
            self._presence.serve()
            switched = follower.state()
            if switched == "cancelled" or self._stopping:
                raise _Stopped("cancelled" if switched == "cancelled" else "stopped")
            now = time.monotonic()
            if switched != "paused" and self._pace.allowed(now) > 0:
                return
            state: State = "paused" if switched == "paused" else "running"
            self._options.progress(meter.tally(state, counts, seen, now))
            time.sleep(PAUSED_S)

    def _record(self, offsets: dict[int, list[int]]) -> None:
        plan, now_ms = self._plan, int(time.time() * 1000)
        for partition, found in offsets.items():
            results = runs("written", found, -1, [-1] * len(found))
            if results:
                batch = ResultBatch(
                    plan.plan_id, action_of(plan), plan.source.topic, partition, self._options.who, now_ms, results
                )
                append(self._cluster, self._options.results.topic, entries(batch))


class _Stopped(Exception):
    """Leaves the writer without a file."""

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.state = state


class FromFile:
    """Sends the records of a file. What has its result is not sent again when it is taken up."""

    def __init__(
        self, cluster: Cluster, plan: ReplayPlan, options: RunOptions, copier: Copier, codec: DictCodec | None
    ) -> None:
        self._cluster, self._plan, self._options = cluster, plan, options
        self._producer = cluster.bulk_producer(CLIENT)
        self._recorder = Recorder(
            self._producer, options.results.topic, plan, options.who, lambda: int(time.time() * 1000)
        )
        self._sending = Sending(cluster, plan, options, Selector.of(plan, codec), copier, self._producer)
        self._follower = Follower(cluster, options.control_topic, plan.plan_id)
        self._presence = Presence(cluster, plan, options)
        self._stopping = False
        self._look_at = self._heard_at = time.monotonic()
        self._state: State = "running"

    def stop(self) -> None:
        self._stopping = True

    def close(self) -> None:
        self._presence.close()
        self._producer.close(0.0)
        self._follower.close()

    def run(self) -> Tally:
        plan = self._plan
        span = plan.source.spans[0]
        meter = Meter((plan.preview or {}).get("selected"), plan.offsets, time.monotonic())
        try:
            self._presence.join()
            self._follower.catch_up()
            flow = Flow(0, span, (), Done(span.start), self._written())
            for messages in batches(file_records(Path(plan.source.topic))):
                if not self._go_on(flow, meter):
                    break
                flow.take(messages)
                while flow.pending and self._go_on(flow, meter):
                    self._sending.send([flow])
                    self._advance(flow)
            self._finish(flow)
            if self._state == "running":
                self._state = "finished" if flow.through else "stopped"
            tally = meter.tally(self._state, flow.done.counts, flow.done.seen, time.monotonic())
        finally:
            self.close()
        self._options.progress(tally)
        return tally

    def _written(self) -> dict[int, str]:
        key = record_key(self._plan.source.topic, 0)
        found = read_results(self._cluster, self._options.results.topic, plan=self._plan.plan_id, key=key)
        return {result.offset: result.outcome for batch in found for result in batch.results}

    def _go_on(self, flow: Flow, meter: Meter) -> bool:
        """Serves the group and the switches; waits while paused."""
        while True:
            self._presence.serve()
            self._state = "cancelled" if self._follower.state() == "cancelled" else "running"
            if self._stopping or self._state == "cancelled":
                return False
            state: State = "paused" if self._follower.state() == "paused" else "running"
            now = time.monotonic()
            if now >= self._look_at or state == "paused":
                self._look_at = now + LOOK_EVERY_S
                self._options.progress(meter.tally(state, flow.done.counts, flow.done.seen, now))
            if state != "paused":
                return True
            self._advance(flow)
            time.sleep(PAUSED_S)

    def _advance(self, flow: Flow) -> None:
        """What waits to be sent waits for answers, or for its rate."""
        self._producer.serve(WAIT_S if flow.pending else 0.0)
        acknowledged = flow.acknowledged()
        if acknowledged:
            self._recorder.record(flow, acknowledged)
        settled = flow.settle()
        if acknowledged or settled is not None or not (flow.batches or flow.recorded):
            self._heard_at = time.monotonic()
        elif time.monotonic() - self._heard_at > STALL_S:
            raise ClusterUnavailable(
                f"the brokers answered nothing for {STALL_S:g} s: check that they are reachable, then run the plan again; it goes on "
                "where it stands"
            )

    def _finish(self, flow: Flow) -> None:
        flow.pending.clear()
        until = time.monotonic() + STOP_S
        while flow.batches or flow.recorded:
            self._sending.push(flow)
            self._advance(flow)
            self._presence.serve(WAIT_S)
            if time.monotonic() > until:
                raise ClusterUnavailable("the brokers did not acknowledge everything in time: run the plan again")
