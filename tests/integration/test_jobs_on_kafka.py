"""Jobs on real Kafka: from `enqueue` to the result, and what a process that dies, comes or goes leaves of them."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.model.errors import JobUnsuccessful
from pipeline.model.job_policies import Fixed
from pipeline.model.job_states import JobState
from tests.integration.harness import ROOT, running
from tests.integration.job_scene import JobScene, Told, make_app, put_schedule
from tests.patience import PATIENCE

pytestmark = [pytest.mark.first, pytest.mark.timeout(180)]


@pytest.fixture
def scene(kafka: str, topic_name: str, tmp_path: Path) -> Iterator[JobScene]:
    with JobScene(kafka, topic_name, tmp_path) as scene:
        yield scene


def order_of(told: list[Told], key: str) -> list[str]:
    """Names of a key's jobs in the order of their first executions."""
    return list(dict.fromkeys(each.name for each in told if each.key == key and each.what == "start"))


def overlaps(told: list[Told], key: str, dead: set[int]) -> list[str]:
    """Executions of a key that began while another one of it ran (in a process that lived)."""
    found, running_now = [], dict[str, Told]()
    for each in told:
        if each.key != key:
            continue
        if each.what == "start":
            found += [f"{each.name} beside {other.name}" for other in running_now.values() if other.pid not in dead]
            running_now[each.id] = each
        else:
            running_now.pop(each.id, None)
    return found


# -- one worker


def test_b5_b7_a_job_is_run_its_result_read_and_a_delay_and_a_retry_are_never_early(scene: JobScene) -> None:
    app = make_app(scene.job_spec())
    scene.make_topics(app)

    async def story() -> None:
        async with running(app, 2):
            assert await (await app.enqueue("obey", {"name": "a"})).result("20s") == {"name": "a", "attempt": 1}
            asked_ms = time.time() * 1000
            later = await app.enqueue("obey", {"name": "later"}, delay="1500ms")
            fails = await app.enqueue("obey", {"name": "fails", "fails": 2})
            assert (await fails.result("20s"))["attempt"] == 3
            await later.result("20s")
            began = {each.name: each.at_ms for each in scene.jobs.told("start")}
            assert 1500 <= began["later"] - asked_ms < 2500, "I8, and not late"
            tries = [each.at_ms for each in scene.jobs.told("start") if each.name == "fails"]
            waits = [b - a for a, b in itertools.pairwise(tries)]
            assert all(299 <= wait < 1500 for wait in waits), waits
            many = await app.enqueue_many("obey", [{"name": f"m{n}"} for n in range(500)])
            assert [(await handle.result("30s"))["name"] for handle in many] == [f"m{n}" for n in range(500)]
            await scene.soon("the inbox is settled", scene.inbox_settled)

    asyncio.run(story())
    starts = Counter(each.id for each in scene.jobs.told("start"))
    assert sum(starts.values()) == len(starts) + 2, "nothing but the two retries ran more than once"


def test_c3_a_job_that_is_given_up_is_a_dead_letter_and_a_cancelled_one_stops(scene: JobScene) -> None:
    app = make_app(scene.job_spec({"attempts": 2, "backoff": Fixed("100ms")}))
    scene.make_topics(app)

    async def story() -> None:
        async with running(app, 2):
            bad = await app.enqueue("obey", {"name": "bad", "fails": 9}, key="k")
            behind = await app.enqueue("obey", {"name": "behind"}, key="k")
            with pytest.raises(JobUnsuccessful, match="given up after 2 attempts: RuntimeError: the input says so"):
                await bad.result("20s")
            await behind.result("20s")
            await scene.soon("the dead letter is there", lambda: scene.count(scene.dead_jobs) == 1)
            (letter,) = scene.read(scene.dead_jobs)
            headers = dict(letter.headers() or ())
            assert headers["pl.attempt"] == b"2"
            assert letter.key() == b"k"
            runs, waits = (
                await app.enqueue("obey", {"name": "runs", "sleep": 600}),
                await app.enqueue("obey", {"name": "waits"}, delay="1h"),
            )
            await scene.soon("it runs", lambda: "runs" in scene.jobs.names("start"))
            for handle in (runs, waits):
                await app.cancel("obey", handle.id, reason="not needed")
                with pytest.raises(JobUnsuccessful, match="was cancelled: not needed"):
                    await handle.result("20s")
            assert (await waits.status()).state is JobState.CANCELLED

    asyncio.run(story())
    assert scene.jobs.names("start") == ["bad", "bad", "behind", "runs"]


# -- processes that die


def test_c5_a_killed_workers_jobs_go_on_in_order_of_their_keys_and_none_is_lost(scene: JobScene) -> None:
    """I1 to I3 with a SIGKILL: keys, retries, results that callers wait for meanwhile."""
    spec = scene.job_spec(concurrency=20)

    async def story() -> None:
        async with scene.caller(spec) as app:
            one, two = scene.start(spec), scene.start(spec)
            await scene.owned(one, two, each=1)
            handles = []
            for n in range(400):
                task = {"name": f"{n}", "sleep": 0.02, "fails": 1 if n % 25 == 0 else 0}
                handles.append(await app.enqueue("obey", task, key=f"k{n % 20}"))
                if n == 200:
                    await scene.soon(
                        "both work", lambda: {t.pid for t in scene.jobs.told("done")} >= {one.pid, two.pid}
                    )
                    one.kill()
            results = [await handle.result("90s") for handle in handles]
            assert [result["name"] for result in results] == [f"{n}" for n in range(400)]
            told = scene.jobs.told()
            for key in range(20):
                assert order_of(told, f"k{key}") == [f"{n}" for n in range(key, 400, 20)]
                assert overlaps(told, f"k{key}", {one.pid}) == []
            done = Counter(each.id for each in told if each.what == "done")
            again = [each for each in told if each.what == "done" and done[each.id] > 1]
            died_ms = max(each.at_ms for each in told if each.pid == one.pid)
            firsts = {each.id: each for each in reversed(again)}
            assert all(each.pid == one.pid and each.at_ms > died_ms - 2_500 for each in firsts.values()), again
            await scene.soon("the inbox is settled", scene.inbox_settled)
            assert two.stop() == 0

    asyncio.run(story())


def test_c5_a_job_that_runs_when_its_worker_dies_is_a_stall_and_not_an_attempt(scene: JobScene) -> None:
    gate = scene.folder / "gate"
    spec = scene.job_spec({"attempts": 1, "max_stalled_count": 2})

    async def story() -> None:
        async with scene.caller(spec) as app:
            handle = await app.enqueue("obey", {"name": "a", "gate": str(gate)})
            for stalls in range(2):
                worker = scene.start(spec)
                await scene.soon("it runs", lambda n=stalls: len(scene.jobs.told("start")) == n + 1, 40)  # type: ignore[misc]
                await scene.becomes(handle, JobState.RUNNING, stalls)
                worker.kill()
            last = scene.start(spec)
            await scene.soon("it runs again", lambda: len(scene.jobs.told("start")) == 3, 40)
            gate.touch()
            assert (await handle.result("30s"))["attempt"] == 1
            assert [each.stalls for each in scene.jobs.told("start")] == [0, 1, 2]
            assert last.stop() == 0

    asyncio.run(story())


def test_d5_what_waits_is_restored_and_fires_on_time_dedup_holds_and_finished_jobs_are_known(scene: JobScene) -> None:
    spec = scene.job_spec()

    async def story() -> None:
        async with scene.caller(spec) as app:
            one = scene.start_and_wait(spec)
            done = await app.enqueue("obey", {"name": "done"}, dedup_id="d")
            await done.result("20s")
            asked_ms = time.time() * 1000
            delays = {f"later{n}": 4_000 + 150 * n for n in range(20)}
            later = [
                await app.enqueue("obey", {"name": name}, run_at=round(asked_ms) + delay)
                for name, delay in delays.items()
            ]
            soon = await app.enqueue("obey", {"name": "soon"}, run_at=round(asked_ms) + 700)
            await scene.soon("they are written", lambda: all(scene.entries_of(each.id) for each in later))
            await soon.result("20s")
            one.kill()
            two = scene.start(spec)
            again = await app.enqueue("obey", {"name": "again"}, dedup_id="d")
            assert (await again.result("40s"))["name"] == "done"
            for handle in later:
                await handle.result("40s")
            began = {each.name: each.at_ms for each in scene.jobs.told("start")}
            assert all(began[name] >= asked_ms + delay - 1 for name, delay in delays.items()), "I8"
            assert Counter(scene.jobs.names("start")) == Counter(["done", "soon", *delays])
            assert (await done.status()).state is JobState.COMPLETED
            assert two.stop() == 0

    asyncio.run(story())


@pytest.mark.timeout(240)
def test_d5_a_tick_fires_once_with_two_workers_and_through_restarts(scene: JobScene) -> None:
    spec = scene.job_spec()
    killed_ms: dict[int, float] = {}

    async def story() -> None:
        async with scene.caller(spec) as app:
            workers = [scene.start(spec), scene.start(spec)]
            await scene.owned(*workers, each=1)
            await put_schedule(app, "every-second", "* * * * * *", {"sleep": 0.05})

            def ticked(more: int) -> Any:
                known = len(set(scene.jobs.names("done")))
                return lambda: len(set(scene.jobs.names("done"))) >= known + more

            await scene.soon("it ticks", ticked(3))
            for how in ("kill", "stop", "kill"):
                old = workers.pop(0)
                if how == "kill":
                    killed_ms[old.pid] = time.time() * 1000
                    old.kill()
                else:
                    old.stop()
                workers.append(scene.start(spec))
                await scene.soon(f"it ticks after a {how}", ticked(4), 60)
            await scene.soon("it ticks on", ticked(2))
            for worker in workers:
                assert worker.stop() == 0

    asyncio.run(story())
    ticks = [int(each.id.rpartition("@")[2]) for each in scene.jobs.told("done")]
    entries = {each.key() for each in scene.entries() if (each.key() or b"").startswith(b"j/every-second@")}
    fired = sorted(int((key or b"").rpartition(b"@")[2]) for key in entries)
    assert fired == list(range(fired[0], fired[-1] + 1, 1000)), "none is left out (misfire: all)"
    assert sorted(set(ticks)) == fired[: len(set(ticks))]
    starts: dict[str, list[int]] = {}
    for each in scene.jobs.told("start"):
        starts.setdefault(each.id, []).append(each.pid)
    repeated = {(tick, pid) for tick, pids in starts.items() for pid in pids[:-1]}
    assert {pid for _, pid in repeated} <= set(killed_ms), "only what ran at a kill may run again"
    ended = [killed_ms[each.pid] - each.at_ms for each in scene.jobs.told("done") if (each.id, each.pid) in repeated]
    assert max(ended, default=0) < 500 * PATIENCE, "or what ended just before it and was not written yet"
    early = [each for each in scene.jobs.told("start") if each.at_ms < int(each.id.rpartition("@")[2])]
    assert early == []


def test_b_e3_chains_of_jobs_go_on_through_a_killed_worker_and_no_link_is_there_twice(scene: JobScene) -> None:
    """Each link asks for the next one; the ids are the same when a link runs again, so there is one job for each."""
    spec = scene.job_spec({"retention": {"completed": 1_000}}, concurrency=20)

    async def story() -> None:
        async with scene.caller(spec) as app:
            one, two = scene.start(spec), scene.start(spec)
            await scene.owned(one, two, each=1)
            for n in range(60):
                task: dict[str, Any] = {"name": f"{n}.3", "sleep": 0.05}
                for link in (2, 1):
                    fails = 1 if (n + link) % 10 == 0 else 0
                    task = {"name": f"{n}.{link}", "sleep": 0.05, "fails": fails, "asks": [task]}
                await app.enqueue("obey", task)
            await scene.soon("both work", lambda: {t.pid for t in scene.jobs.told("done")} >= {one.pid, two.pid})
            one.kill()
            wanted = {f"{n}.{link}" for n in range(60) for link in (1, 2, 3)}
            await scene.soon("all links are done", lambda: set(scene.jobs.names("done")) == wanted, 60)
            await scene.soon("the inbox is settled", scene.inbox_settled)
            assert len({(each.id, each.name) for each in scene.jobs.told()}) == 180
            assert len({each.key() for each in scene.entries()}) == 180
            assert two.stop() == 0

    asyncio.run(story())


def test_c5_what_a_worker_writes_that_wakes_up_late_changes_nothing(scene: JobScene) -> None:
    """Fault 3: SIGSTOP until others have its partitions, SIGCONT with its handlers done and their entries to be written."""
    spec = scene.job_spec(concurrency=40)

    async def story() -> None:
        async with scene.caller(spec) as app:
            one, two = scene.start(spec), scene.start(spec)
            await scene.owned(one, two, each=1)
            handles = [
                await app.enqueue("obey", {"name": f"{n}", "sleep": 1.0, "fails": n % 2}, key=f"k{n % 30}")
                for n in range(60)
            ]
            await scene.soon("both work", lambda: {t.pid for t in scene.jobs.told("start")} >= {one.pid, two.pid})
            one.send(signal.SIGSTOP)
            await scene.owned_by(two)
            await scene.soon(
                "it has run what the other had", lambda: len({t.id for t in scene.jobs.told("done")}) >= 50
            )
            one.send(signal.SIGCONT)
            assert [(await handle.result("60s"))["name"] for handle in handles] == [f"{n}" for n in range(60)]
            more = [await app.enqueue("obey", {"name": f"more {n}"}, key=f"k{n}") for n in range(30)]
            for handle in more:
                await handle.result("60s")
            await scene.owned(one, two, each=1)
            await scene.soon("what is true stands last", lambda: not scene.strangers())
            for number, handle in enumerate(handles):
                status = await handle.status()
                assert (status.state, status.attempt) == (JobState.COMPLETED, 1 + number % 2)
            assert [one.stop(), two.stop()] == [0, 0]

    asyncio.run(story())
    told = scene.jobs.told()
    for key in range(30):
        alive = [each for each in told if each.pid != scene.processes[0].pid]
        assert order_of(alive, f"k{key}") == [
            name for name in (f"{key}", f"{key + 30}", f"more {key}") if name in {each.name for each in alive}
        ]


# -- processes that come and go


def test_f7_a_worker_that_stops_in_order_repeats_nothing_and_keeps_the_order_of_keys(scene: JobScene) -> None:
    spec = scene.job_spec(concurrency=20)

    async def story() -> None:
        async with scene.caller(spec) as app:
            one, two = scene.start(spec), scene.start(spec)
            await scene.owned(one, two, each=1)
            handles, third = [], None
            for n in range(600):
                task = {"name": f"{n}", "sleep": 0.02, "fails": 1 if n % 30 == 0 else 0}
                options: dict[str, Any] = {"key": f"k{n % 20}"} if n % 3 else {"delay": f"{n % 7}00ms"}
                handles.append(await app.enqueue("obey", task, **options))
                if n == 200:
                    await scene.soon(
                        "both work", lambda: {t.pid for t in scene.jobs.told("done")} >= {one.pid, two.pid}
                    )
                    one.popen.terminate()
                if n == 400:
                    assert await asyncio.to_thread(one.popen.wait, 60) == 0, (
                        "a second signal would meet a process on its way out"
                    )
                    third = scene.start(spec)
            assert third is not None
            for handle in handles:
                await handle.result("90s")
            told = scene.jobs.told()
            attempts = Counter((each.id, each.attempt) for each in told if each.what == "start")
            assert [each for each, count in attempts.items() if count > 1] == [], "an attempt ran twice"
            assert not [each for each in told if each.stalls], "a stop in order is no stall"
            for key in range(20):
                wanted = [f"{n}" for n in range(key, 600, 20) if n % 3]
                assert order_of(told, f"k{key}") == wanted
                assert overlaps(told, f"k{key}", set()) == []
            await scene.owned(two, third, each=1)
            assert [two.stop(), third.stop()] == [0, 0]

    asyncio.run(story())


def test_f7_a_supervised_worker_that_is_killed_is_started_again_and_goes_on(scene: JobScene) -> None:
    """`pipeline run`, whose worker process is SIGKILLed in the middle of jobs."""
    spec = scene.job_spec()

    async def story() -> None:
        async with scene.caller(spec) as app:
            log = (scene.folder / "run.log").open("ab")
            command = [
                sys.executable,
                "-c",
                "from pipeline.cli.main import run; run()",
                "run",
                spec["app"],
                "--processes",
                "2",
            ]
            run = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, "HARNESS_SPEC": json.dumps(spec)}, stdout=log, stderr=log
            )
            try:
                handles = [await app.enqueue("obey", {"name": f"{n}", "sleep": 1}) for n in range(200)]
                await scene.soon("it works", lambda: scene.jobs.told("done"), 40)
                killed = scene.jobs.told("done")[0].pid
                assert killed != run.pid
                os.kill(killed, signal.SIGKILL)
                names = [(await handle.result("60s"))["name"] for handle in handles]
                assert names == [f"{n}" for n in range(200)]

                async def a_third_has_work() -> None:
                    while len({each.pid for each in scene.jobs.told("done")}) < 3:
                        await (await app.enqueue("obey", {})).result("30s")

                await asyncio.wait_for(a_third_has_work(), 40 * PATIENCE)
                run.terminate()
                assert run.wait(30 * PATIENCE) == 0
            finally:
                if run.poll() is None:
                    run.kill()
                    run.wait(10 * PATIENCE)
                log.close()

    asyncio.run(story())
