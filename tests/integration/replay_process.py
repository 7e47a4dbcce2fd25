"""One process of a replay under test: it ends itself, as by SIGKILL, when a stage has been reached so many times.

    python -m tests.integration.replay_process BOOTSTRAP PREFIX PLAN-FILE JSON-OPTIONS

Options: `die_at` (stage), `die_after` (times), `join`, `window`, `announce` (a file written at the first stage), `hold` (a file that is
waited for then).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from pipeline.app import Pipeline
from pipeline.replay.plan import from_text
from pipeline.replay.running import Reason, Surroundings, run_options, run_plan
from pipeline.settings import Settings
from tests.integration.waiting import until


def main() -> None:
    bootstrap, prefix, path, text = sys.argv[1:]
    wanted: dict[str, Any] = json.loads(text)
    plan = from_text(Path(path).read_text())
    app = Pipeline("t", settings=Settings(broker=bootstrap, prefix=prefix))
    surroundings = Surroundings(app.cluster, prefix)
    reached = 0

    def stage(name: str) -> None:
        nonlocal reached
        if name == wanted.get("die_at"):
            reached += 1
            if reached >= wanted.get("die_after", 1):
                os.kill(os.getpid(), signal.SIGKILL)
        if "announce" in wanted and name == "sent":
            Path(wanted["announce"]).touch()
            if "hold" in wanted:
                until("it may go on", Path(wanted["hold"]).exists, 60)

    def progress(tally: object) -> None:
        print(tally, file=sys.stderr, flush=True)

    options = run_options(
        surroundings,
        plan,
        "test",
        stage=stage,
        progress=progress,
        session_timeout_ms=3_000,
        **{name: wanted[name] for name in ("join", "window") if name in wanted},
    )
    tally = run_plan(surroundings, plan, Reason("test", "a test"), options, app.codec)
    print(json.dumps({"state": tally.state, "counts": dict(tally.counts)}))


if __name__ == "__main__":
    main()
