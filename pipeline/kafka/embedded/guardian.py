"""The process between us and one JVM: no JVM outlives the process that wanted it, however that one died.

Runs alone (`python -I -S guardian.py LOG REMOVE_DIR -- COMMAND...`), so it imports nothing of the project.
Its standard input is a pipe whose other end the owner holds: end of file means that the owner is gone. `T`
asks the JVM to stop, `K` kills it. A second sign is the parent's id: a forked child of the owner may keep the
pipe open, but the guardian is still reparented.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time

GRACE_S = 3.0
PARENT_CHECK_S = 0.5


def _watch(child: subprocess.Popen[bytes], wakeup: int) -> bool:
    """Pass commands on until the JVM ends (False) or the owner does (True)."""
    owner = os.getppid()
    while child.poll() is None:
        readable, _, _ = select.select([0, wakeup], [], [], PARENT_CHECK_S)
        if wakeup in readable:
            os.read(wakeup, 4096)
        if 0 in readable:
            commands = os.read(0, 4096)
            if not commands:
                return True
            if b"K" in commands:
                child.kill()
            elif b"T" in commands:
                child.terminate()
        if os.getppid() != owner:
            return True
    return False


def _end(child: subprocess.Popen[bytes]) -> None:
    """SIGTERM, a short grace so that logs are closed, then SIGKILL, the only one a stopped (SIGSTOP) JVM
    obeys.
    """
    child.terminate()
    deadline = time.monotonic() + GRACE_S
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if child.poll() is None:
        child.kill()
    child.wait()


def _remove(directory: str) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    try:
        os.rmdir(os.path.dirname(directory))  # the last of several nodes takes the common directory along
    except OSError:
        return


def main(argv: list[str]) -> int:
    log_path, remove_dir, separator, *command = argv
    if separator != "--":
        return 2
    wake_r, wake_w = os.pipe()
    os.set_blocking(wake_w, False)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)  # a handler, not SIG_IGN, which the JVM would inherit
    signal.set_wakeup_fd(wake_w)
    with open(log_path, "ab", buffering=0) as log:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    print(child.pid, flush=True)
    if _watch(child, wake_r):
        _end(child)
        if remove_dir:
            _remove(remove_dir)
    return 0 if child.returncode == 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
