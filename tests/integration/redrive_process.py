"""A redrive, or a release of every key, in a process that is killed at one of its stages.

They are "audited", "sent", "acknowledged", "recorded" and `CANARY`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

from pipeline import Pipeline, Settings
from pipeline.dead_letters import Actor, RedrivePolicy, release_dead_letters
from pipeline.dead_letters import redrive as engine
from pipeline.dead_letters.api import OPEN
from pipeline.dead_letters.desk import Desk
from tests.integration.harness import ROOT, Scene
from tests.patience import PATIENCE

WINDOW = 400
CANARY = "canary sent"
ANA = Actor("ana@ops", "the provider is back")


def killed(scene: Scene, stage: str, group: str, what: str = "redrive") -> None:
    """Returns when it is dead; fails when it ended otherwise."""
    words = [scene.bootstrap, scene.prefix, str(scene.folder / "state"), group, stage, what]
    process = subprocess.run(
        [sys.executable, "-m", "tests.integration.redrive_process", *words], cwd=ROOT, timeout=60 * PATIENCE, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == -signal.SIGKILL, process.stderr[-2_000:]


def main(bootstrap: str, prefix: str, state: str, group: str, stage: str, what: str) -> None:
    app = Pipeline("t", broker=bootstrap, settings=Settings(broker=bootstrap, prefix=prefix, state_dir=state))
    patched: Any = engine
    options_of = patched.run_options
    left = 2 if stage == "sent" and what == "redrive" else 1

    def at(name: str) -> None:
        nonlocal left
        left -= name == stage
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    def options(*given: Any, **more: Any) -> Any:
        return options_of(*given, **more, stage=at, window=WINDOW)

    patched.run_options = options
    if what == "release":
        release_dead_letters(app, [], ANA, group=group)
        return
    patched.members = lambda *_: 1  # a canary needs workers, and none is to run it before the kill
    with Desk.of(app, group) as desk:
        desk.refresh()
        policy = RedrivePolicy(rate=1_000)
        prepared = engine.prepare(desk, desk.matching(OPEN), ANA.who, 1, policy, 5 if stage == CANARY else 0)
        told = engine.Progress(canary=lambda _found: at(CANARY))
        engine.run(desk, prepared, ANA, int(time.time() * 1000), policy, progress=told)


if __name__ == "__main__":
    main(*sys.argv[1:])
