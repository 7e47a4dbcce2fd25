"""Executions of jobs: handlers called alone or in batches, and what came of each as an ending."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pipeline.core.jobs.job import Job
from pipeline.model.job_types import JobType
from pipeline.model.jobs import Completed, JobEnding, JobProgress, Stalled
from pipeline.model.outbox import UNDER_WAY
from pipeline.model.outcome import Cancelled, Failure
from pipeline.worker.child import failure_in
from pipeline.worker.child_jobs import Death
from pipeline.worker.execution import failure_of, timed_out
from pipeline.worker.jobs.batching import Batches
from pipeline.worker.jobs.context import Home, JobContext
from pipeline.worker.jobs.deadlines import Deadlines
from pipeline.worker.jobs.pool import Pool
from pipeline.worker.jobs.processes import JobProcesses, asked_in
from pipeline.worker.jobs.runs import Run
from pipeline.worker.jobs.telling import Teller
from pipeline.worker.jobs.threads import HandlerThreads
from pipeline.worker.jobs.values import WARNING_CHARS, Large, Values, kept, plain_text
from pipeline.worker.stalls import Stalls, stack_of

LET_GO = "let go"


@dataclass(frozen=True, slots=True)
class Shell:
    """Where jobs run. `ended` hears of every ending, `told` of what handlers say (and whether it is to be written now), both in the loop's
    thread; `failed` of a defect of our own. `stalls`: what does not end at its deadline. `places`: so many jobs run at once at most.
    `freed`: one of them is free again that was taken by an execution without a job, which had been let go."""

    loop: asyncio.AbstractEventLoop
    ended: Callable[[Run, JobEnding], None]
    told: Callable[[Run, JobProgress, bool], None]
    now_ms: Callable[[], int]
    log: Any
    home: Home
    failed: Callable[[BaseException], None]
    stalls: Stalls
    places: int
    freed: Callable[[], None] = lambda: None


class JobRuns:
    """Runs what it is given in a pool of tasks, batches in tasks of their own; `def` handlers in threads."""

    def __init__(
        self, types: Mapping[str, JobType], shell: Shell, values: Values, processes: Mapping[str, JobProcesses]
    ) -> None:
        self._types = types
        self._shell = shell
        self._loop = shell.loop
        self._values = values
        self._processes = processes
        self._batches = {
            name: Batches(declared, self, shell.loop, values)
            for name, declared in types.items()
            if declared.policy.batch is not None
        }
        self._deadlines = Deadlines(shell.loop, self._late)
        self._pool = Pool(shell.loop, self._run, shell.failed)
        self._threads = HandlerThreads(shell.loop, shell.places)
        self.running: dict[Run, None] = {}  # a set that keeps its order
        self.left: dict[Run, None] = {}
        """What has its ending while its handler goes on: it takes a place, as one that nobody stopped does, until that returns."""

    def start(self, host: Any, job: Job) -> None:
        assert job.request is not None
        run = Run(host, job, job.request.timeout_ms or job.kind.policy.timeout_ms)
        self.running[run] = None
        batches = self._batches.get(job.request.type)
        if batches is not None:
            batches.add(run)
            return
        self._pool.add(run)

    def watch(self, run: Run) -> None:
        """Its time begins."""
        self._deadlines.begin(run)

    def _late(self, run: Run) -> None:
        """Its time is over. What can't be stopped is told as stalled, and so is what did not stop in as much time again."""
        if run not in self.running and run not in self.left:
            return
        if run.in_thread and (left_s := self._threads.time_left_s(run)) > 0:
            self._loop.call_later(left_s, self._late, run)
            return
        again = bool(run.ended_by)
        self.interrupt(run, "timeout")
        if run not in self.running and run not in self.left:
            return
        if not run.in_thread and not again:
            self._deadlines.begin(run)
            return
        job, since_s = run.job, time.monotonic() - run.timeout_ms / 1000
        frames = run.task.get_stack() if run.task is not None else ()
        stack = stack_of(run.thread) if run.thread else "".join(map(str, frames))
        self._shell.stalls.begin_other(run, since_s, stack, {"job": job.id, "type": job.kind.name}, attempt=job.attempt)

    def interrupt(self, run: Run, reason: str) -> None:
        """Stop it, as far as it can be stopped. A thread goes on to its end, and may still have its effect: so its job has no ending
        before that, and its key and its place wait. When it is let go nobody looks at what comes of it, but its place waits."""
        if run not in self.running or run in self.left or (run.ended_by and not (run.in_thread and reason == LET_GO)):
            return
        run.ended_by = run.ended_by or reason
        if run.in_thread:
            if reason != LET_GO:
                return
            if run.call is not None:
                self._leave(run, run.call)
        if run.job.kind.name in self._batches:
            if run.task is not None and run not in self.left:
                self._leave(run, run.task)
            self.finish(run, self.stopped(run))
            self._batches[run.job.kind.name].left(run)
        elif run.task is not None:  # else it has not begun, and does not
            run.task.cancel()

    async def _run(self, run: Run) -> None:
        try:
            ending = self.stopped(run) if run.ended_by else await self._execute(run)
        except asyncio.CancelledError:
            ending = self.stopped(run)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except (
            BaseException
        ) as error:  # also SystemExit: it would end the worker, and take with it all that runs beside
            ending = failure_of(error, run.job.kind.policy.terminal)
        self.finish(run, ending)

    def finish(self, run: Run, ending: JobEnding) -> None:
        """It has its ending; another one changes nothing."""
        if run not in self.left:
            self._deadlines.end(run)
            self._shell.stalls.end(run)
        if run.ended_by == "abandoned" or run not in self.running:
            return
        if run.teller is not None:
            run.teller.close()
        del self.running[run]
        if isinstance(ending, Failure):
            ending = kept(ending)
        elif isinstance(ending, Completed) and ending.warning is not None:
            ending = ending._replace(warning=plain_text(ending.warning, WARNING_CHARS))
        self._shell.ended(run, ending)

    def _leave(self, run: Run, call: asyncio.Future[Any]) -> None:
        self.left[run] = None
        call.add_done_callback(partial(self._returned, run))

    def _returned(self, run: Run, _call: asyncio.Future[Any]) -> None:
        """The handler of one that had its ending before."""
        if run in self.left:
            del self.left[run]
            self._deadlines.end(run)
            self._shell.stalls.end(run)
            self._shell.freed()

    async def _execute(self, run: Run) -> JobEnding:
        processes = self._processes.get(run.job.kind.name)
        if processes is not None:
            return await self._in_process(run, processes)  # there the deadline is the process's, from when it has begun
        self.watch(run)
        job, values = run.job, self._values
        payload = values.at_hand(job)
        given = values.read(job, await values.fetched(job) if payload is None else payload)
        if isinstance(given, Failure):
            return given
        declared, context = self._types[job.kind.name], self.context(run)
        UNDER_WAY.set(context)
        try:
            arguments = (given.value,) if declared.alone else (given.value, context)
            returned = await self.call(declared, arguments, (context,), (run,))
        except asyncio.CancelledError:
            raise
        except (Exception, SystemExit) as error:
            return self.stopped(run) if run.thread is not None and run.ended_by else self.failed(run, error)
        finally:
            if declared.is_async:
                context.ended = True
        if run.thread is not None and run.ended_by:
            return self.stopped(run)
        ending = values.completed(job, returned)
        return await values.stored(job, ending) if isinstance(ending, Large) else ending

    async def _in_process(self, run: Run, processes: JobProcesses) -> JobEnding:
        """A process that ended with the job is a stall, as if the whole worker had."""
        payload = await self._values.payload(run.job)
        if isinstance(payload, Failure):
            return payload
        how = await processes.call(run, payload, self._teller(run).relay)
        if isinstance(how, Failure):
            return how
        if isinstance(how, Death):
            return replace(timed_out(run.timeout_ms), stack=how.stack) if how.late else Stalled(how.how)
        if how.head["kind"] == "failed":
            return failure_in(how.head)
        run.asked = asked_in(how)
        ending = self._values.encoded(run.job, how.blobs[0], how.head["warning"])
        return await self._values.stored_if_large(run.job, ending)

    def call(
        self, declared: JobType, arguments: tuple[object, ...], contexts: Sequence[JobContext], runs: Sequence[Run]
    ) -> Awaitable[object]:
        """The handler, for these. In a thread it ends their contexts itself."""
        if declared.is_async:
            called: Awaitable[object] = declared.handler(*arguments)  # type: ignore[assignment]
            return called
        return self._threads.call(declared.handler, arguments, contexts, runs)

    def context(self, run: Run) -> JobContext:
        shell = self._shell
        context = JobContext(run.job, run.timeout_ms, partial(self._teller, run), shell.log, shell.home)
        run.asked = context.asked
        return context

    def _teller(self, run: Run) -> Teller:
        """Made when the handler says something: most say nothing. What it says after its ending is not heard."""
        if run.teller is None:
            shell = self._shell
            run.teller = Teller(shell.loop, partial(shell.told, run), shell.now_ms)
            if run not in self.running:
                run.teller.close()
        return run.teller

    @staticmethod
    def failed(run: Run, error: BaseException) -> Failure:
        failure = failure_of(error, run.job.kind.policy.terminal)
        tail = run.teller.tail if run.teller is not None else None
        return replace(failure, log=tail.text()) if tail is not None else failure

    @staticmethod
    def stopped(run: Run) -> JobEnding:
        if run.ended_by == "timeout":
            return timed_out(run.timeout_ms)
        if run.ended_by:
            return Cancelled()
        return failure_of(RuntimeError("the handler was cancelled from inside: something it awaited was cancelled"), ())

    def tasks(self) -> set[asyncio.Task[None]]:
        """What is under way."""
        return {*self._pool.tasks(), *(run.task for run in (*self.running, *self.left) if run.task is not None)}

    def abandon(self) -> None:
        for run in self.running:
            run.ended_by = "abandoned"
            if run.teller is not None:
                run.teller.abandon()
        self._deadlines.stop()
        self._pool.abandon()
        for task in self.tasks():
            task.cancel()
        for batches in self._batches.values():
            batches.abandon()
        for processes in self._processes.values():
            processes.abandon()
        self._threads.abandon()
        for run in self.left:
            self._shell.stalls.end(run)
        self.left.clear()
        self.running.clear()
