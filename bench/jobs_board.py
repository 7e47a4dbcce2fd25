"""The pure core's share of a job: admit -> take -> ended on one board, in batches; and what a job that waits costs in memory.

python -m bench.jobs_board [--jobs 200000] [--batch 500] [--tenants 20] [--keys 0] [--profile]
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import pstats
import struct
import sys
import time
import tracemalloc

from pipeline.core.jobs.board import Board
from pipeline.core.jobs.restoring import Restoring
from pipeline.model.job_ids import job_id
from pipeline.model.job_policies import JobPolicy, QueuePolicy
from pipeline.model.job_states import JobState
from pipeline.model.jobs import Completed, JobEntry, JobRecord, JobRequest

NOW_MS = 1_767_225_600_000
PAYLOAD = b'{"ticket":"ticket-12345","text":"' + b"x" * 60 + b'"}'


class NoPacking:
    """What the board costs alone. Nothing that runs at once is ever unpacked."""

    def pack(self, entry: JobEntry) -> bytes:
        return PAYLOAD

    def unpack(self, key: bytes, packed: bytes) -> JobEntry:
        raise NotImplementedError


class Packed:
    """Bytes of about the size that Avro makes of a scheduled job."""

    numbers = struct.Struct("<qqqqq")

    def pack(self, entry: JobEntry) -> bytes:
        assert isinstance(entry, JobRecord)
        request = entry.request
        text = "\0".join((request.id, request.type, request.tenant, request.key or "")).encode()
        head = self.numbers.pack(entry.number, entry.next_ms, request.created_ms, request.due_ms, len(text))
        return head + text + request.payload

    def unpack(self, key: bytes, packed: bytes) -> JobEntry:
        number, next_ms, created_ms, due_ms, length = self.numbers.unpack_from(packed)
        at = self.numbers.size
        name, type_name, tenant, order = packed[at : at + length].decode().split("\0")
        request = JobRequest(
            name, type_name, packed[at + length :], None, created_ms, order or None, sys.intern(tenant), due_ms=due_ms
        )
        return JobRecord(request, JobState.SCHEDULED if next_ms else JobState.QUEUED, 0, number, next_ms=next_ms)


def requests(count: int, tenants: int, keys: int, due_ms: int = 0) -> list[tuple[int, JobRequest]]:
    return [
        (
            offset,
            JobRequest(
                id=job_id(NOW_MS, offset.to_bytes(10)),
                type="classify",
                payload=PAYLOAD + str(offset).encode(),
                created_ms=NOW_MS,
                tenant=sys.intern(f"tenant-{offset % tenants}"),
                key=f"key-{offset % keys}" if keys else None,
                due_ms=due_ms + offset * 1_000 if due_ms else 0,
            ),
        )
        for offset in range(count)
    ]


def life(board: Board, work: list[list[tuple[int, JobRequest]]]) -> int:
    """Each batch is admitted, taken and ended; twice a batch what is committed is told."""
    ended, now_ms, done = 0, NOW_MS, Completed()
    for batch in work:
        board.admit(batch, now_ms)
        while taken := board.take(100, now_ms):
            board.ended([(job, job.version, done) for job in taken], now_ms)
            ended += len(taken)
        board.committed = batch[-1][0] + 1
        board.due(now_ms)
        board.sync()
        board.effects()
        now_ms += 20
    return ended


def measure(jobs: int, batch: int, tenants: int, keys: int, rounds: int = 3) -> float:
    best = float("inf")
    for _ in range(rounds):
        all_of_them = requests(jobs, tenants, keys)
        work = [all_of_them[at : at + batch] for at in range(0, jobs, batch)]
        board = new_board()
        gc.collect()
        gc.freeze()  # all requests are made beforehand: in a worker they come and go
        began = time.process_time()
        ended = life(board, work)
        best = min(best, time.process_time() - began)
        gc.unfreeze()
        if ended != jobs:
            raise RuntimeError(f"{ended} of {jobs} jobs ended")
    return best * 1e6 / jobs


def new_board(packing: NoPacking | Packed | None = None) -> Board:
    return Board(QueuePolicy(), {"classify": JobPolicy()}, packing or NoPacking())


def memory(jobs: int, keys: int) -> tuple[float, float, float]:
    """Bytes of a scheduled job with its entry, of the entry alone, and microseconds to restore one."""
    board, entries = new_board(Packed()), []
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for at in range(0, jobs, 1_000):
        batch = [
            (at + offset, request) for offset, request in requests(1_000, 20, keys, NOW_MS + 3_600_000 + at * 1_000)
        ]
        batch = [(offset, _renamed(request, offset)) for offset, request in batch]
        board.admit(batch, NOW_MS)
        entries += [(entry.key, entry.value) for entry in board.effects()]  # type: ignore[union-attr]
    del batch
    gc.collect()
    kept_by_us = sum(len(value) + 33 + 8 for _, value in entries)
    lists = sum(len(key) + 33 + 8 + 56 + 8 for key, _ in entries)
    total = tracemalloc.get_traced_memory()[0] - before - lists
    tracemalloc.stop()
    fresh = new_board(Packed())
    began = time.process_time()
    restoring = Restoring(fresh)
    restoring.entries(entries)
    restoring.finish(NOW_MS)
    took = time.process_time() - began
    if len(fresh.timers) != jobs:
        raise RuntimeError(f"{len(fresh.timers)} of {jobs} jobs were restored")
    return total / jobs, kept_by_us / jobs, took * 1e6 / jobs


def _renamed(request: JobRequest, offset: int) -> JobRequest:
    return JobRequest(
        job_id(NOW_MS, offset.to_bytes(10)), "classify", request.payload, None, NOW_MS, request.key and f"key-{offset}",
        request.tenant, due_ms=request.due_ms,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--tenants", type=int, default=20)
    parser.add_argument("--keys", type=int, default=0)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    if arguments.profile:
        all_of_them = requests(arguments.jobs, arguments.tenants, arguments.keys)
        work = [all_of_them[at : at + arguments.batch] for at in range(0, arguments.jobs, arguments.batch)]
        profile = cProfile.Profile()
        profile.runcall(life, new_board(), work)
        pstats.Stats(profile).sort_stats("tottime").print_stats(18)
        return
    for keys in (arguments.keys, arguments.keys or 400):
        used = measure(arguments.jobs, arguments.batch, arguments.tenants, keys)
        print(f"keys={keys:<5} {used:.2f} us per job, {1e6 / used:,.0f}/s")
    for keys in (0, 1):
        total, entry, restore = memory(arguments.jobs, keys)
        told = f"{total:.0f} bytes per job, {entry:.0f} of them its entry; {restore:.1f} us to restore one"
        print(f"waiting, {'with' if keys else 'without'} key: {told}")


if __name__ == "__main__":
    main()
