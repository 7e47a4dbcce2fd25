"""An agent without asyncio, on threads, that may outlive its broker: what Kafka does not take is spooled to disk.

PIPELINE_BROKER=host:port python sync_agent.py [SPOOL_FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline import Pipeline
from pipeline.emit.policy import BufferPolicy
from pipeline.emit.recorder import SyncRecorder

app = Pipeline("sync-agent")


def work(recorder: SyncRecorder, task: int) -> str:
    """One run; each thread may record its own, and several threads may share one."""
    with recorder.run(agent="planner", tenant="acme", labels={"task": str(task)}) as run:
        with run.model_call("gpt-small") as call:
            call.usage(input_tokens=80, output_tokens=20)
        try:
            with run.tool_call("divide", arguments={"by": task}) as tool:
                tool.result(100 / task)
        except ZeroDivisionError as error:  # recorded as ToolResult with status ERROR
            run.fail("BadTask", str(error))
        return run.run_id


def main(folder: Path) -> None:
    policy = BufferPolicy(mode="spool", spool_dir=folder, block_timeout="200ms")
    recorder = app.recorder(policy)
    with recorder as recording, ThreadPoolExecutor(4) as pool:
        for run_id in pool.map(lambda task: work(recording, task), range(4)):
            print(run_id)
    left = recorder.left
    if left.undelivered or left.refused:
        print(f"{left.undelivered + left.refused} events are lost", file=sys.stderr)
    if left.spool_bytes:
        print(f"{left.spool_bytes} bytes wait in {folder} for the next start", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.gettempdir()) / "agent-spool")
