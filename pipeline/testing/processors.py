"""`run_processor`: one job from its request to its ending, in virtual time; hours of back-off take milliseconds.

    @app.job("charge", attempts=5, backoff=Exponential("1m", max_delay="1h"))
    async def charge(order: Order, job: JobContext) -> Receipt: ...

    run = run_processor(charge, {"id": 7})
    assert run.attempts == 2 and run.result == Receipt(id=7)

The scheduling is the one of workers: attempts, back-off, deadlines, Retry and Reject, the types of input and result. There is no network in
virtual time: give the handler stand-ins for what it calls. A batch handler gets a batch of one. Permissions are not looked at.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from pipeline.background import MemoryQueue
from pipeline.memory.loop import VirtualClockLoop, run
from pipeline.model.errors import ConfigurationError, JobUnsuccessful
from pipeline.model.job_policies import JobOptions
from pipeline.model.job_states import JobState
from pipeline.model.job_types import JobType
from pipeline.worker.jobs.declaring import declaration_of, declared_policy

_NAMES = frozenset({"job", "type", "tenant", "attempt", "queue"})


@dataclass(frozen=True, slots=True)
class LogLine:
    """What a handler said through `job.log`."""

    attempt: int
    level: str
    event: str
    fields: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join(
            [f"attempt {self.attempt}", self.level, self.event, *(f"{k}={v!r}" for k, v in self.fields.items())]
        )


@dataclass(frozen=True, slots=True)
class ProcessorRun:
    """What became of it. `result` is of the type that the handler's annotation says. `error` is what the last attempt raised, or
    a JobUnsuccessful where something else ended it (its deadline, an input that does not fit), None for a job that ended well.

    `began_s`: when each execution began, in seconds of virtual time since the request.
    """

    attempts: int
    state: JobState
    result: Any = None
    error: BaseException | None = None
    logs: tuple[LogLine, ...] = ()
    began_s: tuple[float, ...] = ()
    warning: str | None = None


def run_processor(
    func: Callable[..., Any],
    data: Any = None,
    *,
    expect_failure: bool = False,
    max_retries: int | None = None,
    options: JobOptions | None = None,
) -> ProcessorRun:
    """Run `func`, a function of `@app.job` or a plain one, on `data`, with retries as its job has them.

    `max_retries`: attempts - 1, in their place. `options`: as `enqueue` takes them; a delay passes in virtual time.
    Raises AssertionError when it fails, or with `expect_failure` when it does not; InvalidJob for data that `enqueue` would refuse.
    """
    if max_retries is not None:
        if max_retries < 0:
            raise ConfigurationError(f"max_retries={max_retries!r} must be at least 0")
        options = replace(options or JobOptions(), attempts=max_retries + 1)
    found = _in_virtual_time(lambda loop: _run(loop, _type_of(func), data, options))
    if (found.error is not None) is not expect_failure:
        said = "".join(f"\n  {line}" for line in found.logs)
        if expect_failure:
            raise AssertionError(f"a failure was expected, and it returned {found.result!r}{said}")
        raise AssertionError(
            f"it ended as {found.state.value} after {found.attempts} attempts: "
            f"{type(found.error).__name__}: {found.error}{said}"
        ) from found.error
    return found


def _type_of(func: Callable[..., Any]) -> JobType:
    known = declared_policy(func)
    name = known[0] if known else getattr(func, "__name__", type(func).__name__)
    if known is None:
        return declaration_of(name, {}).type(func)
    _, policy = known
    batch = {} if policy.batch is None else {"batch": policy.batch}
    return replace(declaration_of(name, batch).type(func), policy=policy)


def _in_virtual_time(main: Callable[[VirtualClockLoop], Any]) -> ProcessorRun:
    """In a thread of its own where this one has an event loop already, as in tests that are `async`."""
    if not _in_a_loop():
        found: ProcessorRun = run(main)
        return found
    ended: list[ProcessorRun | BaseException] = []

    def aside() -> None:
        try:
            ended.append(run(main))
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=aside, name="run-processor")
    thread.start()
    thread.join()
    if isinstance(ended[0], BaseException):
        raise ended[0]
    return ended[0]


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class _Seen:
    """What the handler did, from where it is called."""

    def __init__(self, loop: VirtualClockLoop, declared: JobType) -> None:
        self.began_s: list[float] = []
        self.error: Exception | None = None
        self.logs: list[LogLine] = []
        self._loop = loop
        self._call: Any = declared.handler
        self.type = replace(declared, handler=self._call_async if declared.is_async else self._call_plain)
        self.log = structlog.wrap_logger(
            None,
            processors=[self._said],
            wrapper_class=structlog.make_filtering_bound_logger(0),
            cache_logger_on_first_use=False,
        )

    async def _call_async(self, *given: Any) -> Any:
        self._begins()
        try:
            return await self._call(*given)
        except Exception as error:
            self.error = error
            raise

    def _call_plain(self, *given: Any) -> Any:
        self._begins()
        try:
            return self._call(*given)
        except Exception as error:
            self.error = error
            raise

    def _begins(self) -> None:
        self.began_s.append(round(self._loop.time(), 3))
        self.error = None

    def _said(self, _logger: Any, level: str, said: Any) -> Any:
        if "attempt" in said:
            fields = {name: value for name, value in said.items() if name not in _NAMES and name != "event"}
            self.logs.append(LogLine(said["attempt"], level, str(said.get("event", "")), fields))
        raise structlog.DropEvent


async def _run(loop: VirtualClockLoop, declared: JobType, data: Any, options: JobOptions | None) -> ProcessorRun:
    seen = _Seen(loop, declared)
    queue = MemoryQueue(clock=loop.clock, random=loop.random.randbytes, log=seen.log)
    queue.serve(seen.type, 1)
    handle = queue.handle(declared.name, await queue.enqueue(declared.name, data, options))
    result, error = None, None
    try:
        result = await handle.result()
    except JobUnsuccessful as unsuccessful:
        error = seen.error or unsuccessful
    async for status in handle.updates():  # not asked for: the queue may have forgotten it, as its retention says
        if status.ended:
            break
    await queue.close()
    return ProcessorRun(
        status.attempt, status.state, result, error, tuple(seen.logs), tuple(seen.began_s), status.warning
    )
