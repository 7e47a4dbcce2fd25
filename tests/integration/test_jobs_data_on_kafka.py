"""What a job's handler and its data can do, on real Kafka with workers in processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import Pipeline
from pipeline.model.errors import JobUnsuccessful
from tests.integration.job_data_scene import APP_NAME, make_app
from tests.integration.job_scene import JobScene
from tests.unit.test_alerting import Receiver

pytestmark = [pytest.mark.timeout(180)]


@pytest.fixture
def scene(kafka: str, topic_name: str, tmp_path: Path) -> Iterator[JobScene]:
    with JobScene(kafka, topic_name, tmp_path) as scene:
        yield scene


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def spec_of(scene: JobScene, settings: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    spec = {**scene.job_spec(**more), "app": APP_NAME}
    return {**spec, "settings": {**spec["settings"], **(settings or {})}}


@contextlib.asynccontextmanager
async def caller(scene: JobScene, spec: dict[str, Any]) -> AsyncIterator[Pipeline]:
    app = make_app(spec)
    await asyncio.to_thread(scene.make_topics, app)
    try:
        yield app
    finally:
        await app.stop()


def test_e5_progress_of_a_killed_workers_job_is_streamed_and_gone_on_with(scene: JobScene) -> None:
    spec = spec_of(scene)

    async def story() -> None:
        async with caller(scene, spec) as app:
            one = scene.start_and_wait(spec)
            handle = await app.enqueue("count", 60)
            seen, killed = [0], 0
            async for update in handle.updates():
                if update.progress is not None:
                    seen.append(update.progress.processed)
                    if not killed and seen[-1] >= 15:
                        killed = seen[-1]
                        one.kill()
                        scene.start(spec)
            assert seen == sorted(seen), "the version and the time of what was said are looked at"
            assert seen[-1] == 60
            assert len(seen) < 30, "at most every 500 ms"
            assert await handle.result("10s") >= killed
            assert (await handle.status()).stalls == 1

    asyncio.run(story())


def test_f4_b9_permissions_are_the_workers_and_large_inputs_and_results_lie_in_a_folder(
    scene: JobScene, tmp_path: Path
) -> None:
    folder = tmp_path / "blobs"
    spec = spec_of(scene, {"blobs": str(folder), "permissions": "tickets:read"})

    async def story() -> None:
        async with caller(scene, spec) as app:
            worker = scene.start_and_wait(spec)
            with pytest.raises(JobUnsuccessful, match="tickets:write, which this worker is not granted") as caught:
                await (await app.enqueue("write")).result("20s")
            assert caught.value.error_class == "PermissionMissing"
            handle = await app.enqueue("repeat", "x" * 3_000_000)
            assert await handle.result("30s") == "x" * 6_000_000
            await scene.soon("its blobs go with the job", lambda: not any(files for _, _, files in os.walk(folder)))
            assert worker.stop() == 0

    asyncio.run(story())


def test_b7_an_ending_is_told_by_a_signed_post_from_a_worker(scene: JobScene, receiver: Receiver) -> None:
    spec = spec_of(scene, webhook=receiver.url)
    receiver.answer = lambda count: 503 if count == 1 else 204

    async def story() -> None:
        async with caller(scene, spec) as app:
            scene.start_and_wait(spec)
            handle = await app.enqueue("repeat", "é", webhook="test")
            await scene.soon("it is told at the second try", lambda: len(receiver.got) == 2)
            headers, body = receiver.got[1]
            told = json.loads(body)
            assert (told["id"], told["state"], told["result"]) == (handle.id, "completed", "éé")
            assert headers["Pipeline-Signature"].startswith("sha256=")

    asyncio.run(story())


def test_d6_only_the_failed_item_of_a_batch_runs_again(scene: JobScene) -> None:
    spec = spec_of(scene)

    async def story() -> None:
        async with caller(scene, spec) as app:
            scene.start_and_wait(spec)
            handles = await app.enqueue_many("index", range(40))
            results = [await handle.result("20s") for handle in handles]
            assert [number for number, _, _ in results] == list(range(40))
            assert [attempt for _, attempt, _ in results] == [2 if number == 7 else 1 for number in range(40)]
            assert max(size for _, _, size in results) > 1

    asyncio.run(story())


def test_b10_c5_a_job_in_a_process_is_bounded_and_its_deaths_are_stalls(scene: JobScene) -> None:
    spec = spec_of(scene)

    async def story() -> None:
        async with caller(scene, spec) as app:
            worker = scene.start_and_wait(spec)
            handle = await app.enqueue("alone", "fine")
            assert (await handle.result("60s"))[0] != worker.pid
            progress = (await handle.status()).progress
            assert progress is not None
            assert progress.note == "fine"
            with pytest.raises(JobUnsuccessful) as caught:
                await (await app.enqueue("alone", "die")).result("60s")
            assert caught.value.error_class == "Stalled"
            with pytest.raises(JobUnsuccessful, match="MemoryError"):
                await (await app.enqueue("alone", "hunger", attempts=1)).result("60s")
            assert (await (await app.enqueue("alone", "fine")).result("60s"))[1] == 0
            assert worker.stop() == 0

    asyncio.run(story())
