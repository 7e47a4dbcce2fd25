"""Redriving on real Kafka with real workers: order, canary, caps, and a SIGKILL at any time: nothing lost, duplicates recognised."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import Context, Pipeline, Reject
from pipeline.dead_letters import (
    RedrivePolicy,
    Wanted,
    edit_dead_letter,
    list_dead_letters,
    redrive_dead_letters,
    release_dead_letters,
)
from pipeline.dead_letters import redrive as engine
from pipeline.dead_letters.api import OPEN
from pipeline.dead_letters.desk import Desk
from pipeline.dead_letters.turn import AnotherRedrive
from pipeline.model.cluster import Headers
from pipeline.model.errors import ConfigurationError, PipelineError
from pipeline.model.headers import DeliveryHeaders, ErrorInfo, dead_letter_headers, decode
from pipeline.model.topics import AUDIT_TOPIC
from pipeline.replay.audit import read_audit
from tests.integration.harness import GROUP, ROOT, SOURCE, Scene, running, until_async
from tests.integration.redrive_process import ANA
from tests.patience import PATIENCE

PARTITIONS = 2
pytestmark = pytest.mark.timeout(180)


class Redriving:
    """Dead letters of one group, and a worker whose handler is told what to do."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.seen: list[tuple[str, int, int]] = []
        self.fails: Callable[[int], bool] = lambda _n: False
        self.app = self.make(scene.app(state_dir=str(scene.folder / "state")))
        scene.make_topics(self.app)
        self.topic = scene.lane("dlq")

    def make(self, app: Pipeline) -> Pipeline:
        @app.subscribe(SOURCE, group=GROUP, tiers=("200ms",), attempts=2, value="json")
        async def handle(value: dict[str, int], ctx: Context) -> None:
            self.seen.append((ctx.run_id, value["n"], ctx.attempt))
            if self.fails(value["n"]):
                raise Reject(f"still no price for request {value['n']}")

        return app

    def die(self, origins: list[tuple[str, int]], partition: int = 0) -> None:
        """In this order, which need not be that of their origins."""
        for key, origin in origins:
            delivery = DeliveryHeaders(
                2, 1, 1, self.scene.topic(), partition, origin, 1_790_000_000_000, self.scene.prefix + GROUP, first_failed_ms=1,
                error=ErrorInfo("terminal", ("Reject", "Timeout")[origin % 2], f"no price for request {origin}"),
            )  # fmt: skip
            headers: Headers = dead_letter_headers([("pl.event_id", f"e-{origin}".encode())], delivery)
            self.scene.publish(key, {"n": origin}, headers, partition, self.topic[len(self.scene.prefix) :])

    def die_many(self, count: int) -> None:
        producer = self.scene.client.cluster.producer("t")
        for origin in range(count):
            delivery = DeliveryHeaders(
                2,
                1,
                1,
                self.scene.topic(),
                0,
                origin,
                1,
                self.scene.prefix + GROUP,
                error=ErrorInfo("terminal", "Reject", "no"),
            )
            producer.send(
                self.topic,
                b"k%d" % (origin % 20),
                json.dumps({"n": origin}).encode(),
                dead_letter_headers([], delivery),
                0,
            )
        assert producer.flush(30) == 0
        producer.close(5)

    def states(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for letter in list_dead_letters(self.app, group=GROUP, wanted=Wanted(), limit=10_000).letters:
            found[letter.state] = found.get(letter.state, 0) + 1
        return found

    def by_key(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for key, n, _ in self.seen:
            found.setdefault(key, []).append(n)
        return found

    async def redrive(self, wanted: Wanted = OPEN, **more: Any) -> Any:
        return await asyncio.to_thread(redrive_dead_letters, self.app, wanted, ANA, group=GROUP, **more)


@pytest.fixture
def place(kafka: str, topic_name: str, tmp_path: Path) -> Iterator[Redriving]:
    with Scene(kafka, topic_name[-20:], tmp_path, PARTITIONS) as scene:
        yield Redriving(scene)


def test_keys_go_back_in_the_order_of_their_origins(place: Redriving) -> None:
    """Letters die out of order when attempts of neighbours overlap, and edited ones stand at the end."""
    chance = random.Random(5)
    letters = [(f"k{n % 7}", n) for n in range(140)]
    chance.shuffle(letters)
    place.die(letters)
    place.die([(f"p{n % 3}", n) for n in range(30)], 1)
    edit_dead_letter(place.app, (0, 3), lambda value: {"n": value["n"], "right": 1}, ANA, group=GROUP)

    async def go() -> None:
        async with running(place.app, PARTITIONS):
            done = await place.redrive(canary=10)
            assert (done.end, done.counts, done.left) == ("finished", {"written": 170}, 0), done
            assert done.canary is not None
            assert done.canary.done == 10
            assert len(done.plans) == 2
            await until_async("all are done", lambda: len(place.seen) == 170)

    asyncio.run(go())
    for key, found in place.by_key().items():
        assert found == sorted(found), f"{key} in the order of its origins: {found}"
    assert place.states() == {"redriven": 170, "edited": 1}
    assert place.scene.dead()[3].value() != b"", "nothing is taken away"
    entries = [entry for _, entry in read_audit(place.scene.client.cluster, place.scene.prefix + AUDIT_TOPIC)]
    assert [entry.action for entry in entries] == ["reveal", "edit", "redrive", "redrive"]
    assert {entry.why for entry in entries} == {ANA.why}


def test_a_canary_that_dies_again_stops_everything(place: Redriving) -> None:
    place.die([(f"k{n % 50}", n) for n in range(200)])
    place.fails = lambda _n: True

    async def go() -> None:
        async with running(place.app, PARTITIONS):
            done = await place.redrive(canary=5)
            assert done.end == "canary failed"
            assert done.counts == {"written": 5}
            assert done.left == 195
            assert done.canary.failed
            assert done.canary.failed[0].message.startswith("still no price")
            await until_async("all five died", lambda: place.scene.count(place.topic) == 205)
            assert len({key for key, _, _ in place.seen}) == 5, "of distinct keys"
            place.fails = lambda _n: False
            done = await place.redrive(canary=5)
            assert done.end == "finished"
            assert done.counts == {"written": 200}
            await until_async("all are done", lambda: len(place.seen) == 205)

    asyncio.run(go())
    assert place.states() == {"redriven": 205}
    for key, found in place.by_key().items():
        again = found[1:] if found[0] == found[1] else found
        assert again == sorted(again), f"{key}: {found}"


def test_a_canary_needs_workers_and_its_outcome_has_a_deadline(place: Redriving) -> None:
    place.die([("a", 1), ("b", 2), ("c", 3)])
    with pytest.raises(ConfigurationError, match="has no workers"):
        redrive_dead_letters(place.app, OPEN, ANA, group=GROUP, canary=1)
    assert place.states() == {"open": 3}
    gate = asyncio.Event()

    async def go() -> None:
        app = place.scene.app()

        @app.subscribe(SOURCE, group=GROUP, tiers=("200ms",), value="json")
        async def handle(value: dict[str, int], ctx: Context) -> None:
            await gate.wait()

        async with running(app, PARTITIONS):
            done = await place.redrive(canary=1, deadline_s=1.5)
            assert done.end == "canary not known"
            assert done.canary.waiting == ("queued",)
            assert done.left == 2
            gate.set()

    asyncio.run(go())
    assert place.states() == {"redriven": 1, "open": 2}


def test_without_workers_and_without_a_canary_they_wait_in_the_lane(place: Redriving) -> None:
    place.die([("a", 1), ("b", 2)])
    done = redrive_dead_letters(place.app, OPEN, ANA, group=GROUP, canary=0)
    assert (done.end, done.counts) == ("finished", {"written": 2})
    assert redrive_dead_letters(place.app, OPEN, ANA, group=GROUP, canary=0).end == "nothing to do"
    records = place.scene.read(place.scene.lane("replay"))
    assert [decode(m.headers()).origin_offset for m in records] == [1, 2]
    assert {decode(m.headers()).replay_id for m in records} == set(done.plans)
    assert [m.key() for m in records] == [b"a", b"b"]
    again = redrive_dead_letters(place.app, Wanted(), ANA, group=GROUP, canary=0, policy=RedrivePolicy(again=True))
    assert again.counts == {"written": 2}, "only when it is told to"


def test_a_letter_that_comes_back_again_and_again_stays_in_the_end(place: Redriving) -> None:
    place.die([("a", 1)])
    place.fails = lambda _n: True

    async def go() -> None:
        async with running(place.app, PARTITIONS):
            for turn in range(3):
                done = await place.redrive(canary=0, policy=RedrivePolicy(replays_max=2))
                if turn < 2:
                    assert done.counts == {"written": 1}
                    await until_async("it died again", lambda turn=turn: place.scene.count(place.topic) == turn + 2)
                else:
                    assert done.counts == {"loop_capped": 1}

    asyncio.run(go())
    assert place.states() == {"redriven": 2, "open": 1}


def test_ctrl_c_ends_it_cleanly_and_says_how_to_go_on(place: Redriving) -> None:
    place.die_many(1_500)
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "PIPELINE_BROKER": place.scene.bootstrap, "PIPELINE_PREFIX": place.scene.prefix,
        "PIPELINE_STATE_DIR": str(place.scene.folder / "state"),
    }  # fmt: skip
    words = ["redrive", "--group", GROUP, "--all", "--canary", "0", "--rate", "200", "--yes", "--reason", "slowly"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli.main", "dlq", *words], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        place.scene.until("some are sent", lambda: place.scene.count(place.scene.lane("replay")) > 50)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30 * PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, (out, err)
    assert "Stopping" in err
    assert "Traceback" not in err
    sent = place.scene.count(place.scene.lane("replay"))
    assert 50 < sent < 1_500
    assert place.states() == {"redriven": sent, "open": 1_500 - sent}, "what was sent has its result"
    (hint,) = [line for line in out.splitlines() if "pipeline replay run" in line]
    path = Path(hint.rpartition(" ")[2])
    words = [*shlex.split(hint.partition(": pipeline ")[2]), "--yes", "--reason", "going on", "--json"]
    again = subprocess.run(
        [sys.executable, "-m", "pipeline.cli.main", *words], cwd=ROOT, env=environment,
        capture_output=True, text=True, timeout=60 * PATIENCE, check=False,
    )  # fmt: skip
    assert again.returncode == 0, (again.stdout, again.stderr)
    assert place.states() == {"redriven": 1_500}
    assert place.scene.count(place.scene.lane("replay")) == 1_500, "none twice"
    assert path.exists()


@pytest.mark.parametrize("machines", ["one", "several"])
def test_redrives_at_once_send_nothing_twice(place: Redriving, machines: str) -> None:
    """Of one machine, or of several, which share no index and no lock."""
    place.die_many(1_000)
    results: list[Any] = []
    begin = threading.Barrier(3)

    def work(number: int) -> None:
        folder = place.scene.folder / (f"state-{number}" if machines == "several" else "state")
        app = place.scene.app(state_dir=str(folder))
        list_dead_letters(app, group=GROUP)  # the index is there: what follows begins together
        begin.wait(30 * PATIENCE)
        try:
            results.append(redrive_dead_letters(app, OPEN, ANA, group=GROUP, canary=0))
        except PipelineError as error:
            results.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 3
    assert place.scene.count(place.scene.lane("replay")) == 1_000
    assert place.states() == {"redriven": 1_000}
    ends = sorted(str(found) if isinstance(found, PipelineError) else found.end for found in results)
    assert ends.count("finished") == 1, ends


def test_a_redrive_is_refused_while_another_machine_is_at_one_and_not_afterwards(place: Redriving) -> None:
    place.die_many(1_000)
    elsewhere = place.scene.app(state_dir=str(place.scene.folder / "another machine"))
    done: list[Any] = []
    going = threading.Event()
    going.set()

    def slowly() -> None:
        policy = RedrivePolicy(rate=50)
        with Desk.of(place.app, GROUP) as desk:
            desk.refresh()
            prepared = engine.prepare(desk, desk.matching(OPEN), ANA.who, 1, policy)
            progress = engine.Progress(alive=going.is_set)
            done.append(engine.run(desk, prepared, ANA, int(time.time() * 1000), policy, progress=progress))

    slow = threading.Thread(target=slowly)
    slow.start()
    try:
        place.scene.until("some are sent", lambda: place.scene.count(place.scene.lane("replay")) > 0)
        with pytest.raises(AnotherRedrive, match=r"being sent back by pipeline-redrive-.* nothing was sent"):
            redrive_dead_letters(elsewhere, OPEN, ANA, group=GROUP, canary=0)
        with pytest.raises(AnotherRedrive):
            release_dead_letters(elsewhere, [], ANA, group=GROUP)
        assert not done
    finally:
        going.clear()
        slow.join(60)
    assert [each.end for each in done] == ["stopped"], "the first went on, until it was told to end"
    assert 0 < done[0].left < 1_000
    after = redrive_dead_letters(elsewhere, OPEN, ANA, group=GROUP, canary=0)
    assert (after.end, after.counts) == ("finished", {"written": done[0].left})
    assert place.scene.count(place.scene.lane("replay")) == 1_000
