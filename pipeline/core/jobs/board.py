"""The jobs of one partition, from request to ending: what its owner is told goes in, what must be written comes out in `effects`.

    admit --> [ timers ] --> [ key order ] --> [ lanes ] -- take --> running -- ended --> finished
                 ^                                                      |
                 '----------- retry, at its time; or to its lane -------'

What is not written is not lost: a request is settled in the inbox by the first entry of its job, and that is written when the job
ends, waits for a time, or has waited for its turn, or run, for some calls of `sync`. So a short job costs one write. A crash leaves a
beginning of the entries and the requests that none of them settled. Three rules make these the same jobs in the same order again:

- An entry of a job that comes due some day is written behind those of all jobs of its key that came due before.
- A job of whose key there is such a one starts when its own entry is acknowledged (`gated`): else it might be read again behind it.
- A dedup window is written before the first entry of its job, and the job of a tick before its schedule goes on.

Whoever calls this owns the partition, takes the effects away after each call (`effects`), and does them in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipeline.core.jobs import retention
from pipeline.core.jobs.choosing import EXPIRED, Chosen
from pipeline.core.jobs.dedup import Dedup
from pipeline.core.jobs.delivering import deliver
from pipeline.core.jobs.entries import Effect, Entry, Packing, Settle
from pipeline.core.jobs.forgetting import dropped, forget
from pipeline.core.jobs.job import Finished, Job, Kind
from pipeline.core.jobs.keys import KeyOrder
from pipeline.core.jobs.lanes import Lanes
from pipeline.core.jobs.ledger import Ledger
from pipeline.core.jobs.retrying import STALLED, UNKNOWN_TYPE, retry_at_ms, terminal, with_attempt
from pipeline.core.jobs.scheduling import Schedules
from pipeline.core.jobs.timers import Timers
from pipeline.model.job_policies import JobPolicy, QueuePolicy
from pipeline.model.job_states import SUCCEEDED, TIMED, JobState
from pipeline.model.jobs import NOTHING_YET, Completed, JobDuplicate, JobEnding, JobOutcome, JobRequest, Stalled
from pipeline.model.outcome import Cancelled, Failure
from pipeline.model.store_keys import dedup_key, job_key

QUEUED, RUNNING, SCHEDULED = JobState.QUEUED, JobState.RUNNING, JobState.SCHEDULED
CANCELLED, COMPLETED = JobState.CANCELLED, JobState.COMPLETED


class Board:
    """`careful`: a job starts only when an entry that says so is acknowledged, so that one that ends its worker is found out.

    `chosen`: those that wait for that. An owner that takes none any more gives them back.
    `read_ms`: all requests from before this time have been admitted. `committed`: the inbox is not read again below this offset.
    `restored_to`: offsets of the inbox up to which jobs that had not begun were restored.
    `spread_ms`: so much later than the `now_ms` it is told it may be, for times that another owner with another clock reads.
    """

    def __init__(self, policy: QueuePolicy, types: Mapping[str, JobPolicy], packing: Packing) -> None:
        self.policy = policy
        self.kinds = {name: Kind(name, of_type) for name, of_type in types.items()}
        self.jobs: dict[str, Finished] = {}
        self.lanes = Lanes(policy)
        self.keys = KeyOrder()
        self.dedup = Dedup()
        self.ledger = Ledger(packing, self.keys, self.dedup)
        self.timers: Timers[Job] = Timers()
        self.schedules = Schedules(self)
        self.lost: list[tuple[str, str, int]] = []  # id, type and stalls of each job that stalled; taken by the owner
        self.careful = False
        self.read_ms = 0
        self.committed = 0
        self.spread_ms = self.restored_to = 0
        self.number = 0
        self.chosen = Chosen(self)

    def effects(self) -> list[Effect]:
        """What is to be done since the last call, in order."""
        return self.ledger.taken()

    def sync(self) -> None:
        """Writes what is true of jobs for longer than since the last call and was not written. Call it as often as is committed."""
        self.ledger.sync()

    # -- requests

    def admit(self, requests: Iterable[tuple[int, JobRequest]], now_ms: int) -> None:
        """Requests with their offsets, as they stand in the inbox."""
        self.call(now_ms)
        for offset, request in requests:
            if request.created_ms > self.read_ms:
                self.read_ms = request.created_ms
            known = self.jobs.get(request.id)
            if known is not None:
                self.seen(known, offset)
            elif request.dedup_id is None or not self.duplicate(request, offset, now_ms):
                self.accept(request, offset, now_ms)

    def accept(self, request: JobRequest, offset: int, now_ms: int, rounds: int = 0, tick_ms: int | None = None) -> Job:
        """A job that is new, or (`rounds`) was forgotten. That of a tick came due with it, and not when it is fired."""
        ready_ms = now_ms if tick_ms is None else tick_ms
        self.call_before(request.key, ready_ms)
        kind = self.kinds.get(request.type) or self.kind(request.type)
        job = self.jobs[request.id] = Job(kind, request, offset, self.number)
        job.rounds = rounds
        self.number += 1
        if request.dedup_id is not None:
            self.dedup.open(request)
        if not kind.known:
            self._unknown(job, now_ms)
        elif request.expires_ms and request.expires_ms <= now_ms:
            self.finish(job, CANCELLED, now_ms, EXPIRED)
        elif request.due_ms > now_ms:
            job.state, job.next_ms = SCHEDULED, request.due_ms
            if job.key is not None:
                self.ledger.older_first(job.key)
                self.keys.scheduled(job.key)
            self.ledger.write(job)
            self.time(job)
        else:
            self.ready(job, ready_ms)
        return job

    def _unknown(self, job: Job, now_ms: int) -> None:
        text = f"no worker of this queue has the job type {job.kind.name!r}: declare it, then retry the job"
        self.give_up(job, terminal(UNKNOWN_TYPE, text), now_ms)

    def kind(self, type_name: str) -> Kind:
        """The type; one that nobody declared is made up, to keep what is known of its jobs."""
        kind = self.kinds.get(type_name)
        if kind is None:
            kind = self.kinds[type_name] = Kind(type_name, JobPolicy(), known=False)
        return kind

    def seen(self, known: Finished, offset: int) -> None:
        """A request that was written twice, or is read a second time: the first one settles by its own entry."""
        if isinstance(known, Job):
            if known.settles == offset:
                return
            known.offset = max(known.offset, offset)
        self.ledger.effects.append(Settle(offset))

    def duplicate(self, request: JobRequest, offset: int, now_ms: int) -> bool:
        first = self.dedup.first_of(request)
        if first is None:
            return False
        job = self.jobs.get(first)
        if isinstance(job, Job):  # whoever reads the answer finds it in the store, unless it is forgotten
            self.ledger.at_once(job)
        answer = JobDuplicate(request.id, request.type, first, now_ms, offset)
        self.jobs[request.id] = answer
        self.ledger.effects.append(Entry(job_key(request.id), self.ledger.packing.pack(answer), offset))
        self.ledger.effects.extend(dropped((request.payload_ref,)))
        retention.finished(self.kind(request.type), answer, now_ms, good=True)
        return True

    # -- time

    def due(self, now_ms: int) -> None:
        """What has its time: jobs (some at once), ticks, what is not kept any longer. Ask again at `next_ms`, and now and then."""
        self.call(now_ms)
        for window in self.dedup.over(self.read_ms):
            self.ledger.effects.append(Entry(dedup_key(window.type, window.dedup_id), None))
        forget(self, now_ms)

    def next_ms(self) -> int | None:
        return min((at for at in (self.timers.next_ms(), self.schedules.next_ms()) if at is not None), default=None)

    def call(self, now_ms: int) -> None:
        for job in self.timers.due(now_ms, self.policy.due):
            self.schedules.due(now_ms, job.next_ms - 1)
            self.called(job, now_ms)
        self.schedules.due(now_ms, now_ms)

    def call_before(self, key: str | None, now_ms: int) -> None:
        """Before a job of this key comes due without a timer: all that came due before it, however many they are."""
        if key is not None and key in self.keys.later:
            for job in self.timers.due(now_ms):
                self.called(job, now_ms)

    def called(self, job: Job, now_ms: int) -> None:
        """Its time has come: to start, or to be given up since it has not."""
        if job.expires_ms and job.expires_ms <= now_ms and not job.started_ms:
            self.cancel(job, EXPIRED, now_ms)
        elif job.state in TIMED:
            if job.state is SCHEDULED and job.key is not None:
                self.keys.came_due(job.key)
            self.ready(job, job.next_ms, written=True)

    def time(self, job: Job) -> None:
        """When it is called: at its time, or when it expires."""
        at_ms = job.next_ms if job.state in TIMED else 0
        if job.expires_ms and not job.started_ms and (not at_ms or job.expires_ms < at_ms):
            at_ms = job.expires_ms
        if at_ms:
            self.timers.set(job, at_ms)

    # -- what may run

    def ready(self, job: Job, ready_ms: int, written: bool = False, last: bool = False) -> None:
        """It is due: to a lane, or behind the others of its key. `written`: its entry says so, or says when. `last`: its offset is not
        that of what made it due, and does not say where it stands among them."""
        job.state, job.ready_ms, job.next_ms = QUEUED, ready_ms, 0
        key = job.key
        if not written:
            self.ledger.queued(job)
            if key is not None and key in self.keys.later:
                job.gated = True
        if key is None or self._enters(key, job, written or last):
            self.lane(job)
        if job.expires_ms:
            self.time(job)
        if job.gated and key is not None:
            self.ledger.older_first(key)

    def _enters(self, key: str, job: Job, last: bool) -> bool:
        """Is it its turn?"""
        if last or not 0 <= job.offset < self.restored_to:
            return self.keys.enter(key, job)
        self.ledger.write(job)  # now: what has no entry stands behind all that has one
        displaced = self.keys.enter_again(key, job)
        if displaced is not None and displaced.laned:
            self.lanes.remove(displaced)
        return self.keys.is_head(key, job)

    def lane(self, job: Job) -> None:
        """It is the first of its key, or has none: to its lane, unless its entry is waited for, or its time."""
        if job.state is JobState.RETRYING:
            self.time(job)
        elif not job.gated and not job.laned:
            self.lanes.add(job)

    def take(self, room: int, now_ms: int) -> list[Job]:
        """Up to `room` jobs that run from now on; their ending names the version that they have now."""
        started: list[Job] = []
        if self.chosen:
            started = self.chosen.started(room, now_ms)
            room -= len(self.chosen)
        for job in self.lanes.take(room - len(started), now_ms):
            if not job.kind.known:
                job.kind.running -= 1
                self._unknown(job, now_ms)
                continue
            if job.expires_ms and job.expires_ms <= now_ms and not job.started_ms:
                job.kind.running -= 1
                self.finish(job, CANCELLED, now_ms, EXPIRED)
                continue
            if job.timer_ms:
                self.timers.clear(job)
            if job.request is None:
                self.ledger.open(job)
            job.state = RUNNING
            job.version += 1
            job.attempt += 1
            before_ms, job.started_ms = job.started_ms, now_ms
            if self.careful:
                self.chosen.add(job, before_ms)
                continue
            self.ledger.begun(job)
            started.append(job)
        return started

    def stored(self, entry: Entry) -> None:
        """An entry with a `gate` is acknowledged."""
        job = entry.gate
        if job is None or not job.gated:
            return
        job.gated = False
        if job.state is RUNNING:
            self.chosen.confirmed.append(job)
        elif job.state is QUEUED and (job.key is None or self.keys.is_head(job.key, job)):
            self.lane(job)

    # -- endings

    def ended(self, endings: Iterable[tuple[Job, int, JobEnding]], now_ms: int) -> None:
        """Executions that ended: the job, the version that was taken, and how. What comes late changes nothing."""
        for job, version, ending in endings:
            if job.version != version or job.state is not RUNNING:
                continue
            job.kind.running -= 1
            if isinstance(ending, Completed):
                self._completed(job, ending, now_ms)
            elif job.cancelling:
                self.finish(job, CANCELLED, now_ms)
            elif isinstance(ending, Cancelled):
                self.again(job)
            elif isinstance(ending, Stalled):
                self.run_again(job, now_ms)
            else:
                self._failed(job, ending, now_ms)

    def _completed(self, job: Job, ending: Completed, now_ms: int) -> None:
        warning = ending.warning
        if (
            warning is not None
            or ending.result is not None
            or ending.result_ref is not None
            or job.outcome is not NOTHING_YET
        ):
            told = job.outcome
            job.blobs = job.blobs or ending.result_ref is not None
            job.outcome = JobOutcome(None, told.history, warning, None, ending.result, ending.result_ref, told.progress)
        self.finish(job, COMPLETED if warning is None else JobState.COMPLETED_WITH_WARNING, now_ms)

    def stalled(self, job: Job, version: int, now_ms: int) -> None:
        """Its execution is lost: the process that ran it died, or it hangs and was given up."""
        if job.version == version and job.state is RUNNING:
            job.kind.running -= 1
            self.run_again(job, now_ms)

    def run_again(self, job: Job, now_ms: int) -> None:
        """What was running is lost without an ending: that execution counts as a stall, not as an attempt."""
        job.stalls += 1
        job.kind.ended[STALLED] += 1
        self.lost.append((job.id, job.kind.name, job.stalls))
        if job.cancelling:
            self.finish(job, CANCELLED, now_ms)
        elif job.stalls > job.kind.policy.max_stalled_count:
            text = (
                f"its worker died or hung {job.stalls} times while it ran: more than max_stalled_count={job.stalls - 1}"
            )
            self.give_up(job, terminal(STALLED, text), now_ms)
        else:
            self.again(job)

    def again(self, job: Job) -> None:
        """To its lane; a key that it has it keeps."""
        self.requeue(job)
        self.lane(job)

    def requeue(self, job: Job) -> None:
        """It waits for its turn once more, and did not have an attempt."""
        job.version += 1
        job.attempt -= 1
        job.state = QUEUED
        self.ledger.write(job)

    def _failed(self, job: Job, failure: Failure, now_ms: int) -> None:
        at_ms = retry_at_ms(job, failure, now_ms + self.spread_ms)
        job.outcome = job.outcome._replace(error=failure, history=with_attempt(job, failure, now_ms))
        if at_ms is None:
            self.give_up(job, failure, now_ms)
        else:
            job.version += 1
            job.state, job.next_ms = JobState.RETRYING, at_ms
            self.ledger.write(job)
            self.time(job)

    def give_up(self, job: Job, failure: Failure, now_ms: int) -> None:
        if job.request is None:
            self.ledger.open(job)
        job.outcome = job.outcome._replace(error=failure)
        job.letter_due = job.kind.policy.dead_letter
        self.finish(job, JobState.DEAD_LETTER if job.letter_due else JobState.FAILED, now_ms)

    def cancel(self, job: Job, reason: str, now_ms: int) -> None:
        """A job that waits for something."""
        if job.state is SCHEDULED and job.key is not None:
            self.keys.came_due(job.key)
        if job.laned:
            self.lanes.remove(job)
        self.finish(job, CANCELLED, now_ms, reason)

    def finish(self, job: Job, state: JobState, now_ms: int, reason: str | None = None) -> None:
        """The one way to a terminal state."""
        if job.request is None:
            self.ledger.open(job)
        job.version += 1
        job.state, job.finished_ms, job.next_ms = state, now_ms, 0
        job.cancelling = job.gated = False
        if reason is not None:
            job.outcome = job.outcome._replace(reason=reason)
        if job.timer_ms:
            self.timers.clear(job)
        if job.key is not None:
            following = self.keys.leave(job.key, job)
            if following is not None:
                self.lane(following)
        request = job.request
        assert request is not None
        job.webhook_due = request.webhook is not None
        self.ledger.write(job)
        if job.webhook_due:
            deliver(self, job, now_ms)
        good = state in SUCCEEDED
        if request.dedup_id is not None and not good and job.kind.policy.release_on_failure:
            self.release(request, job)
        retention.finished(job.kind, job, now_ms, good)
        job.kind.ended[state._value_] += 1

    def release(self, request: JobRequest, job: Job) -> None:
        assert request.dedup_id is not None
        if self.dedup.release((request.type, request.dedup_id), job.id):
            self.ledger.effects.append(Entry(dedup_key(request.type, request.dedup_id), None))

    def lettered(self, job_id: str, version: int) -> None:
        """Its dead letter is acknowledged."""
        job = self.jobs.get(job_id)
        if isinstance(job, Job) and job.version == version and job.letter_due:
            self.ledger.open(job)
            job.letter_due = False
            if not job.webhook_due:  # else with that: its delivery is written behind the letter
                self.ledger.write(job)
