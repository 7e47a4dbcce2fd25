"""The execution of a plan by one process: a member of the plan's own group that copies the partitions it is given.

    poll -> choose -> copy -> send -> (acknowledged) -> results -> (acknowledged) -> commit

Everything happens in the thread that calls `run`; the brokers' answers are looked at between polls. Several fetches are
under way at once, within the window.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from pipeline.inspect.decoding import DictCodec
from pipeline.model.cluster import Cluster, ConsumerPolicy, FetchFault, TopicPartition
from pipeline.model.errors import ClusterError, ClusterUnavailable, FencedError, NotAuthorized, PipelineError
from pipeline.replay.copying import Copier
from pipeline.replay.fetching import WAIT_BUSY_S, Fetching
from pipeline.replay.flow import Flow
from pipeline.replay.following import Follower
from pipeline.replay.joining import CLIENT, JOINED, committed_done, open_flows, refuse_second
from pipeline.replay.options import Meter, RunOptions, State, Tally
from pipeline.replay.plan import ReplayPlan
from pipeline.replay.progress import Done
from pipeline.replay.recording import Recorder
from pipeline.replay.selecting import Selector
from pipeline.replay.sending import Sending

STOP_S = 30.0
STALL_S = 120.0
"""With something under way and no answer of any kind for so long, the run ends: it can be taken up when the brokers are back."""
COMMIT_EVERY_S, LOOK_EVERY_S, LOOK_ENDED_S = 0.1, 0.5, 0.05
RECORD_EVERY_S, RECORD_SOON_S = 0.1, 0.02
"""Results of the batches acknowledged meanwhile go out together: written per fetch they took a tenth of the processor time. Sooner
where the window is half full, since what has no acknowledged result takes place in it, and when everything is out: the end waits."""


class Executor:
    """See the module. `stop` may be called from a signal handler."""

    def __init__(
        self, cluster: Cluster, plan: ReplayPlan, options: RunOptions, copier: Copier, codec: DictCodec | None = None
    ) -> None:
        self._cluster, self._plan, self._options = cluster, plan, options
        self._topic, self._spans = plan.source.topic, plan.source.spans
        policy = ConsumerPolicy(
            group=options.group,
            client_id=JOINED if options.join else CLIENT,
            protocol=options.protocol,
            session_timeout_ms=options.session_timeout_ms,
        )
        self._consumer = cluster.consumer(policy)
        self._producer = cluster.bulk_producer(CLIENT)
        self._recorder = Recorder(
            self._producer, options.results.topic, plan, options.who, lambda: int(time.time() * 1000)
        )
        self._sending = Sending(cluster, plan, options, Selector.of(plan, codec), copier, self._producer)
        self._follower = Follower(cluster, options.control_topic, plan.plan_id)
        self._flows: dict[int, Flow] = {}
        self._fetching = Fetching(cluster, self._consumer, plan, options.window, self._flows)
        self._opening: set[int] = set()
        self._known: dict[int, Done] = {}
        self._refused: ClusterError | None = None
        self._not_stored: ClusterError | None = None
        self._stopping = self._checked = self._committing = False
        now = time.monotonic()
        self._meter = Meter((plan.preview or {}).get("selected"), plan.offsets, now)
        self._look_at = self._commit_at = self._recorded_at = self._heard_at = self._awake_at = now
        self.state: State = "running"
        self.settled = 0  # results of this process that are acknowledged

    # -- from outside

    def stop(self) -> None:
        """Take nothing more; `run` returns when what is under way is through and committed."""
        self._stopping = True

    def tally(self) -> Tally:
        counts: Counter[str] = Counter()
        seen = 0
        for done in (*self._known.values(), *(flow.done for flow in self._flows.values())):
            counts += done.counts
            seen += done.seen
        return self._meter.tally(self.state, counts, seen, time.monotonic())

    def run(self) -> Tally:
        """Until all partitions of the plan are through (also those of other processes), or it is stopped or cancelled.

        Raises a `PipelineError` for what can't go on; what was acknowledged and recorded by then is committed.
        """
        try:
            self._consumer.subscribe(self._topic, self)
            while self.state in ("running", "paused"):
                self._step()
            self._finish()
        except PipelineError:
            with contextlib.suppress(PipelineError):  # the first is the one to tell of
                self._finish()
            raise
        finally:
            self.close()
        tally = self.tally()
        self._options.progress(tally)
        return tally

    def close(self) -> None:
        """Free everything; `run` does."""
        self._consumer.close()
        self._producer.close(0.0)
        self._follower.close()

    # -- RebalanceListener: called inside poll

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        self._opening.update(place.partition for place in partitions if place.partition in self._spans)

    def revoked(self, partitions: Sequence[TopicPartition]) -> bool:
        """What is under way is finished and committed first."""
        mine = [self._flows[place.partition] for place in partitions if place.partition in self._flows]
        try:
            for flow in mine:
                flow.drain()
                self._push(flow)
            self._advance(now=True)
        except ClusterError as error:
            self._refused = self._refused or error  # this may not raise: the loop does
        if not all(flow.idle for flow in mine):
            return False
        self.lost(partitions)
        return True

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        for place in partitions:
            self._opening.discard(place.partition)
            self._fetching.forget(place.partition)
            self._sending.forget(place.partition)
            flow = self._flows.pop(place.partition, None)
            if flow is not None:
                self._known[place.partition] = flow.committed or flow.done
        self._share()

    def fault(self, fault: FetchFault) -> None:
        self._fetching.fault(fault)

    # -- the loop

    def _step(self) -> None:
        self._look()
        if self._stopping:
            self.state = "stopped"
            return
        if self._fetching.poll(self.state == "running"):
            self._heard_at = time.monotonic()
        if self._refused is not None:
            raise self._refused
        if self._opening:
            self._open()
        self._check_awake()
        if self.state == "running":
            self._sending.send(self._flows.values())
            self._stopping = self._stopping or self._sending.room() <= 0
        self._advance()

    def _look(self) -> None:
        """Now and then: the switches, the other processes, whether all is done."""
        now = time.monotonic()
        ended = bool(self._flows) and all(flow.through and flow.idle for flow in self._flows.values())
        if now < self._look_at and (not ended or now < self._look_at - LOOK_EVERY_S + LOOK_ENDED_S):
            return
        self._look_at = now + LOOK_EVERY_S
        if not self._options.alive():
            self._stopping = True
        switched = self._follower.state()
        self.state = "cancelled" if switched == "cancelled" else "paused" if switched == "paused" else "running"
        self._options.progress(self.tally())
        if self._opening or (self._flows and not ended):
            return
        with contextlib.suppress(ClusterUnavailable):
            found = committed_done(self._consumer, self._plan)
            self._heard_at = now
            self._known = {p: done for p, done in found.items() if p not in self._flows}
            last = self._plan.last
            if all(found[p].complete(span.end, len(last.get(p, ()))) for p, span in self._spans.items()):
                self.state = "finished" if switched != "cancelled" else self.state

    def _open(self) -> None:
        if not self._checked and not self._options.join:
            admin = self._cluster.admin()
            try:
                refuse_second(admin, self._options, self._plan, self._consumer.member_id())
            finally:
                admin.close()
        self._checked = True
        try:
            flows = open_flows(self._cluster, self._consumer, self._plan, self._options.results, self._opening)
        except ClusterUnavailable:
            return  # tried again in the next step
        self._opening.clear()
        now, starts = time.monotonic(), {}
        self._heard_at = now
        for flow in flows:
            flow.heard_s = now
            self._flows[flow.partition] = flow
            self._known.pop(flow.partition, None)
            if not flow.fetched:
                starts[TopicPartition(self._topic, flow.partition)] = flow.next_offset
        self._consumer.add(starts)
        self._share()

    def _share(self) -> None:
        """Of the plan's rate so much is ours as of its partitions."""
        if self._plan.rate:
            working = sum(1 for span in self._spans.values() if span.size) or 1
            self._sending.share(sum(1 for flow in self._flows.values() if flow.span.size) / working)

    # -- answers

    def _advance(self, now: bool = False) -> None:
        """Acknowledged records get their results, acknowledged results are committed."""
        self._producer.serve(0.0)
        at = time.monotonic()
        since = at - self._recorded_at
        soon = self._sending.crowded or all(flow.fetched and not flow.pending for flow in self._flows.values())
        recording = now or since >= (RECORD_SOON_S if soon else RECORD_EVERY_S)
        if recording:
            self._recorded_at = at
        for flow in self._flows.values():
            acknowledged = flow.acknowledged() if recording else ()
            if acknowledged:
                self._heard_at = time.monotonic()
                self._options.stage("acknowledged")
                self._recorder.record(flow, acknowledged)
            settled = flow.settle()
            if settled is not None:
                self._heard_at = time.monotonic()
                self.settled += settled
                self._options.stage("recorded")
        self._commit(now)

    def _commit(self, now: bool) -> None:
        at = time.monotonic()
        if self._committing or (at < self._commit_at and not now):
            return
        positions = {}
        for flow in self._flows.values():
            if flow.dirty and flow.committing is None:
                flow.committing = flow.done
                positions[TopicPartition(self._topic, flow.partition)] = flow.done.position()
        if positions:
            self._committing, self._commit_at = True, at + COMMIT_EVERY_S
            self._consumer.commit(positions, self._committed)

    def _committed(self, answers: Mapping[TopicPartition, ClusterError | None]) -> None:
        """Called inside poll. What was not stored is tried again, for as long as the partition is ours."""
        self._committing = False
        for place, error in answers.items():
            flow = self._flows.get(place.partition)
            if flow is None or flow.committing is None:
                continue
            self._not_stored = error
            if error is None:
                flow.committed, flow.held = flow.committing, False
                self._heard_at = time.monotonic()
            elif isinstance(error, NotAuthorized):
                self._refused = error
            elif isinstance(error, FencedError):
                flow.held = True  # someone else may own it: no copy more until a commit is stored, or it is lost
            flow.committing = None

    def _finish(self) -> None:
        """What is under way gets its results and its commit, within `STOP_S`; what was not sent stays for the next run."""
        until = time.monotonic() + STOP_S
        refused: ClusterError | None = None
        for flow in self._flows.values():
            flow.drain()
        while not all(flow.idle for flow in self._flows.values()) and time.monotonic() < until:
            try:
                for flow in self._flows.values():
                    self._push(flow)
                self._advance(now=True)
            except ClusterError as error:  # one flow's: it was given up, the others go on
                refused = refused or error
            self._consumer.poll(1, WAIT_BUSY_S)
        if refused is not None:
            raise refused

    def _push(self, flow: Flow) -> None:
        """What a full queue refused. One that is held by doubt of its owner stays unsent."""
        if flow.held:
            return
        try:
            self._sending.push(flow)
        except ClusterError:
            flow.abandon()
            raise

    def _check_awake(self) -> None:
        """A process that was stopped may have lost its partitions without hearing of it yet, and brokers may be silent for good."""
        now = time.monotonic()
        if now - self._awake_at > self._options.session_timeout_ms / 2_000:
            self._heard_at = now
            for flow in self._flows.values():
                flow.hold()
        self._awake_at = now
        if now - self._heard_at > STALL_S and (
            self._opening or not self._flows or not all(flow.idle for flow in self._flows.values())
        ):
            said = "" if self._not_stored is None else f" ({self._not_stored})"
            raise ClusterUnavailable(
                f"the brokers answered nothing for {STALL_S:g} s{said}: check that they are reachable, then run the plan again; it goes "
                "on where it stands"
            )
