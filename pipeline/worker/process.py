"""One worker process: run an application until a signal or a defect ends it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.model.errors import ClusterUnavailable, ConfigurationError, PipelineError
from pipeline.worker.collector import relax
from pipeline.worker.logs import configure, logger

if TYPE_CHECKING:
    from pipeline.app import Pipeline
    from pipeline.worker.worker import Worker

EXIT_DEFECT = 70
"""EX_SOFTWARE of sysexits.h: the supervisor starts the process again."""

READY = b"ready %d\n"
"""What the supervisor hears, with the milliseconds that a drain may take."""
PARENT_CHECK_S = 0.5
_TARGET = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """`index` is this process's number among its siblings; its status port is `metrics_port + index` (0: any free one).

    With `parent_pid` it stops, in order, when that process is gone: no orphans after a killed supervisor. `ready_fd` hears when it
    has started.
    """

    target: str
    groups: tuple[str, ...] = ()
    index: int = 0
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
    parent_pid: int | None = None
    ready_fd: int | None = None


def load(target: str) -> Pipeline:
    """The application at `MODULE:APP`, imported from the current directory or the Python path.

    Raises `ConfigurationError` when it can't be imported or is something else; a `MemoryError` as it is.
    """
    from pipeline.app import Pipeline

    if not _TARGET.match(target):
        raise ConfigurationError(f"{target!r} is not MODULE:APP: write for example `mymodule:app`")
    module_name, _, attribute = target.partition(":")
    here = str(os.getcwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as missing:
        if missing.name and (module_name == missing.name or module_name.startswith(missing.name + ".")):
            raise ConfigurationError(f"module {module_name!r} was not found here or on the Python path") from None
        raise ConfigurationError(f"importing {module_name!r} failed: no module named {missing.name!r}") from missing
    except MemoryError:
        raise  # of this moment and not of the application: the process ends, and another one is started
    except Exception as broken:
        raise ConfigurationError(f"importing {module_name!r} failed: {type(broken).__name__}: {broken}") from broken
    if not hasattr(module, attribute):
        raise ConfigurationError(
            f"module {module_name!r} has no variable {attribute!r}: name the one that holds the application"
        )
    app = getattr(module, attribute)
    if not isinstance(app, Pipeline):
        raise ConfigurationError(
            f"{target!r} is {type(app).__name__}, not a Pipeline: name the variable that holds the application"
        )
    return app


def run(spec: ProcessSpec) -> int:
    """Exit code: 0 stopped cleanly, 2 wrong configuration, 3 cluster unreachable, EXIT_DEFECT a defect."""
    try:
        app = load(spec.target)
        configure(app.settings.log_format, app.settings.log_level)
        return _run_loop(app, spec)
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ClusterUnavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run_loop(app: Pipeline, spec: ProcessSpec) -> int:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(_serve(app, spec))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(app, spec))


async def _serve(app: Pipeline, spec: ProcessSpec) -> int:
    from pipeline.worker.metrics import StatusServer
    from pipeline.worker.worker import Worker

    log = logger(app=app.name, index=spec.index, pid=os.getpid())
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    worker = Worker(app, spec.groups, spec.index, spec.target)
    status = None
    if spec.metrics_port is not None:
        # Before it joins: one that ends because the port is taken must not count as an owner that died.
        status = StatusServer(worker, spec.metrics_port + spec.index if spec.metrics_port else 0, spec.metrics_host)
    await worker.start()
    if spec.ready_fd is not None:
        with contextlib.suppress(BrokenPipeError):  # the supervisor is gone: that is noticed below
            os.write(spec.ready_fd, READY % worker.drain_ms)
        os.close(spec.ready_fd)
    relax()
    if status is not None:
        status.start()
        log.info("status", metrics=f"http://{spec.metrics_host}:{status.port}/metrics")
    watch = asyncio.ensure_future(_watch_parent(spec.parent_pid, stopping))
    code = await _until_ended(worker, stopping)
    watch.cancel()
    log.info("stopping" if code == 0 else "stopping after a defect")
    await worker.stop()
    if status is not None:
        status.stop()
    log.info("stopped", code=code)
    return code


async def _watch_parent(parent_pid: int | None, stopping: asyncio.Event) -> None:
    while parent_pid is not None:
        await asyncio.sleep(PARENT_CHECK_S)
        if os.getppid() != parent_pid:
            stopping.set()
            return


async def _until_ended(worker: Worker, stopping: asyncio.Event) -> int:
    assert worker.broken is not None
    worker.broken.add_done_callback(lambda _broken: stopping.set())
    await stopping.wait()
    return EXIT_DEFECT if worker.broken.done() else 0


def main(arguments: Sequence[str]) -> int:
    """`python -m pipeline.worker.process PARENT TARGET INDEX PORT HOST [GROUP ...] [--ready=FD]`: how the supervisor starts one."""
    parent, target, index, port, host, *groups = arguments
    ready = [int(groups.pop().partition("=")[2])] if groups and groups[-1].startswith("--ready=") else [None]
    metrics_port = int(port) if port != "-" else None
    return run(ProcessSpec(target, tuple(groups), int(index), metrics_port, host, int(parent), ready[0]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
