"""Held keys on real Kafka: successors follow a dead letter, owners come and go, and an operator sends them back in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline import Context, Reject
from pipeline.cli import main
from pipeline.dead_letters import Actor, Wanted, list_dead_letters, redrive_dead_letters, release_dead_letters
from pipeline.dead_letters.desk import Desk
from pipeline.dead_letters.holds import Hold, find_holds, open_holds
from pipeline.model.errors import ConfigurationError
from tests.integration.harness import GROUP, SOURCE, Scene, running, until_async

ANA = Actor("ana@ops", "the provider is back")
HELD_SPEC = {"dead_letter": "hold", "tiers": ("200ms",), "attempts": 2}
pytestmark = [pytest.mark.first, pytest.mark.timeout(120)]


class Holding:
    """A scene with one partition, and a handler in this process that rejects what it is told to."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.seen: list[tuple[str, int]] = []
        self.rejects: Callable[[int], bool] = lambda _n: False
        self.app = scene.app(state_dir=str(scene.folder / "state"))

        @self.app.subscribe(SOURCE, group=GROUP, value="json", **HELD_SPEC)  # type: ignore[arg-type]
        async def handle(value: dict[str, Any], ctx: Context) -> None:
            self.seen.append((ctx.run_id, value["n"]))
            if self.rejects(value["n"]):
                raise Reject("no")

        scene.make_topics(self.app)

    def publish(self, key: str, *numbers: int, **more: Any) -> None:
        self.scene.publish_many([(key, {"n": n, **more}) for n in numbers])

    def letters(self, **wanted: Any) -> list[str]:
        found = list_dead_letters(self.app, group=GROUP, wanted=Wanted(**wanted), limit=1_000).letters
        return [f"{letter.key} {letter.error_class}" for letter in reversed(found)]

    def holds(self) -> list[Hold]:
        with Desk.of(self.app, GROUP) as desk:
            return find_holds(desk, self.scene.prefix + GROUP)

    def of(self, key: str) -> list[int]:
        return [n for each, n in self.seen if each == key]

    async def until_dead(self, count: int) -> None:
        await until_async(f"{count} dead letters", lambda: self.scene.count(self.scene.lane("dlq")) >= count)

    async def until_held(self, count: int) -> None:
        def settled() -> bool:
            return len(self.holds()) == count and self.scene.settled()

        await until_async(f"{count} held keys, all committed", settled)


@pytest.fixture
def place(kafka: str, topic_name: str, tmp_path: Path) -> Iterator[Holding]:
    with Scene(kafka, topic_name[-20:], tmp_path, 1) as scene:
        yield Holding(scene)


def test_a_killed_owner_leaves_keys_held_and_a_redrive_brings_all_back_in_order(place: Holding) -> None:
    scene = place.scene
    worker = scene.start_and_wait(scene.spec(**HELD_SPEC))
    place.publish("a", 0, reject=True)
    place.publish("a", 1, 2)
    place.publish("b", 0)
    scene.until("three dead letters", lambda: scene.count(scene.lane("dlq")) == 3)
    scene.until("the key is held", lambda: len(place.holds()) == 1)
    scene.until("all of it is committed: nothing of it runs again", scene.settled)
    worker.kill()
    place.publish("a", 3, 4)

    async def go() -> None:
        async with running(place.app, 1):
            await place.until_dead(5)
            await place.until_held(1)
            assert place.of("a") == [], "what follows a held record does not run"
            with pytest.raises(ConfigurationError, match="a reason is needed"):
                redrive_dead_letters(place.app, Wanted(states=("open",), keys=("zzz",)), Actor("x", ""), group=GROUP)
            done = await asyncio.to_thread(
                redrive_dead_letters, place.app, Wanted(states=("open",), error_types=("Reject",)), ANA, group=GROUP
            )
            assert (done.end, done.counts, done.held) == ("finished", {"written": 5}, ()), done
            place.publish("a", 5)
            await until_async("all are done", lambda: len(place.of("a")) == 6)
            assert place.of("a") == [0, 1, 2, 3, 4, 5]
            await place.until_held(0)

    asyncio.run(go())
    assert place.letters(states=("open",)) == []
    marks = [dict(m.headers() or ())["pl.hold"] for m in scene.dead() if "pl.hold" in dict(m.headers() or ())]
    assert marks == [b"behind/0"] * 4


def test_new_records_wait_while_a_key_is_released_and_a_second_failure_holds_it_again(place: Holding) -> None:
    place.rejects = lambda n: n == 0
    place.publish("a", 0, 1, 2)
    group = place.scene.prefix + GROUP

    async def go() -> None:
        async with running(place.app, 1):
            await place.until_dead(3)
            await place.until_held(1)
            with Desk.of(place.app, GROUP) as desk:
                opened = await asyncio.to_thread(open_holds, desk, group, place.holds(), "first-try")
            assert [hold.release for hold in opened] == ["first-try"], "a tool that dies here leaves it so"
            place.publish("a", 3, 4)
            await until_async("they wait in the lane", lambda: place.scene.count(place.scene.lane("replay")) >= 4)
            assert place.of("a") == [0]
            assert place.scene.count(place.scene.lane("dlq")) == 3, "they follow no longer"
            place.rejects = lambda n: n == 2
            done = await asyncio.to_thread(release_dead_letters, place.app, ["a"], ANA, group=GROUP)
            assert (done.end, done.counts) == ("finished", {"written": 2, "cancelled": 1}), done
            await place.until_dead(6)
            await place.until_held(1)
            assert place.of("a") == [0, 1, 2], "3 and 4 follow what failed among those that were sent back"
            place.rejects = lambda _n: False
            done = await asyncio.to_thread(
                redrive_dead_letters, place.app, Wanted(states=("open",)), ANA, group=GROUP, canary=1
            )
            assert done.end == "finished", done
            await until_async("all are done", lambda: len(place.of("a")) == 6)
            assert place.of("a") == [0, 1, 2, 2, 3, 4]

    asyncio.run(go())
    assert place.letters(states=("cancelled",)) == ["a Reject"]


def test_without_a_worker_a_key_is_released_all_the_same_and_commands_say_what_is_held(
    place: Holding, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.rejects = lambda n: n == 0
    place.publish("a", 0, 1, 2)
    place.publish("b", 7)

    async def hold() -> None:
        async with running(place.app, 1):
            await place.until_dead(3)
            await place.until_held(1)

    asyncio.run(hold())
    scene = place.scene
    for name, value in (
        ("BROKER", scene.bootstrap),
        ("PREFIX", scene.prefix),
        ("STATE_DIR", str(scene.folder / "state")),
    ):
        monkeypatch.setenv(f"PIPELINE_{name}", value)

    def run(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(main.app, list(words), catch_exceptions=True)
        assert result.exit_code == code, result.output
        return " ".join(result.output.split())

    assert "its key is held behind it" in run("why", "a", "--group", GROUP)
    left_out = run("dlq", "redrive", "--group", GROUP, "--error-class", "Held", "--yes", "--reason", "r", code=1)
    assert "held behind another dead letter" in left_out
    assert '"written": 2' in run("dlq", "release", "a", "--group", GROUP, "--yes", "--reason", "by hand", "--json")
    assert "is held" in run("dlq", "release", "b", "--group", GROUP, "--yes", "--reason", "by hand", code=1)

    async def go_on() -> None:
        async with running(place.app, 1):
            await until_async("what followed is done", lambda: place.of("a") == [0, 1, 2])
            await place.until_held(0)

    asyncio.run(go_on())
