"""B9: large inputs and results lie in a blob store, small ones in the topics; who deletes them, and what is refused."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
import structlog

from pipeline import Pipeline, Settings
from pipeline.blobs import open_store
from pipeline.blobs.folder import FolderBlobs
from pipeline.codec.jobs import InboxCodec
from pipeline.model.blobs import BlobStore, blob_name, name_of
from pipeline.model.errors import BlobError, BlobMissing, ConfigurationError, JobUnsuccessful, PayloadTooLarge
from pipeline.model.headers import DeliveryHeaders, encode
from pipeline.model.job_policies import Fixed, RetentionPolicy
from pipeline.model.jobs import JobRequest
from tests.unit.jobs.worlds import ADDRESS, World, play, until

INBOX, STATE, DEAD = "jobs.default", "jobs.default.default.state", "jobs.default.default.dlq"


@pytest.fixture(autouse=True)
def silent() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])


class Shelf:
    """A store of one's own: bytes in a dictionary. `refuses` so many calls of `put`."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.refuses = 0
        self.lock = threading.Lock()

    def put(self, name: str, data: bytes) -> None:
        with self.lock:
            if self.refuses:
                self.refuses -= 1
                raise BlobError("not now")
            self.blobs[name] = data

    def get(self, name: str) -> bytes:
        try:
            return self.blobs[name]
        except KeyError:
            raise BlobMissing(f"blob {name} is not there") from None

    def delete(self, name: str) -> None:
        self.blobs.pop(name, None)


def application(store: BlobStore | None, name: str = "app", **settings: Any) -> Pipeline:
    made = Settings(broker=ADDRESS, session_timeout_s=6.0, blob_inline_bytes=1_000, blob_bytes_max=5_000_000)
    return Pipeline(name, settings=made.model_copy(update=settings), blobs=store)


# -- stores


@pytest.fixture(params=["folder", "file:", "fsspec", "fsspec-folder", "own"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    if request.param == "own":
        return Shelf()
    urls = {"folder": str(tmp_path / "b"), "file:": f"file://{tmp_path}/b", "fsspec": f"memory://{tmp_path.name}"}
    if request.param == "fsspec-folder":
        from pipeline.blobs.by_fsspec import FsspecBlobs

        return FsspecBlobs(f"file://{tmp_path}/b")
    return open_store(urls[request.param])


def test_b9_a_store_keeps_what_it_is_given_until_it_is_deleted(store: BlobStore) -> None:
    data = bytes(range(256)) * 1_000
    for name in ("jobs.q/a/input", "jobs.q/a/result", "plain"):
        with pytest.raises(BlobMissing):
            store.get(name)
        store.put(name, b"first")
        store.put(name, data)
        assert store.get(name) == data
    store.delete("jobs.q/a/input")
    store.delete("jobs.q/a/input")
    with pytest.raises(BlobMissing):
        store.get("jobs.q/a/input")
    assert store.get("jobs.q/a/result") == data


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "a//b", ".", ""])
def test_b9_no_name_leads_out_of_a_store(tmp_path: Path, name: str) -> None:
    from pipeline.blobs.by_fsspec import FsspecBlobs

    (tmp_path / "x").write_bytes(b"secret")
    for store in (FolderBlobs(tmp_path / "b"), FsspecBlobs(f"file://{tmp_path}/b")):
        for call in (store.get, store.delete, lambda name, store=store: store.put(name, b"")):
            with pytest.raises(BlobError, match="no name of a blob"):
                call(name)
    assert (tmp_path / "x").read_bytes() == b"secret"


def test_b9_a_folder_is_its_owners_and_has_no_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FolderBlobs(tmp_path / "b")
    store.put("q/a/input", b"data")
    path = tmp_path / "b" / "q" / "a" / "input"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BlobError, match="No space left"):
        store.put("q/a/input", b"other")
    assert [entry.name for entry in path.parent.iterdir()] == ["input"]
    assert store.get("q/a/input") == b"data"
    store.delete("q/a/input")
    assert list((tmp_path / "b").iterdir()) == []


def test_b9_a_store_that_can_not_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for url, text in (
        (f"file://host{tmp_path}", "names the host host"),
        (str(tmp_path / "file"), "can't be made"),
        ("nonsense://x/y", "fsspec can't open nonsense://"),
    ):
        with pytest.raises(ConfigurationError, match=text):
            open_store(url)


def test_b9_names_are_plain_and_references_say_who_deletes_them() -> None:
    assert blob_name("jobs.q", "nightly/..@5", "input") == "jobs.q/nightly%2F..@5/input"
    assert name_of("kept:a/b") == "a/b"
    for wrong in ("a/b", "other:a", "queue:", "s3://x"):
        with pytest.raises(BlobError, match="no reference"):
            name_of(wrong)


# -- jobs


def test_b9_a_large_input_and_a_large_result_lie_in_the_store_and_small_ones_in_the_topics(tmp_path: Path) -> None:
    app = application(None, blobs=str(tmp_path))
    other = application(None, "other", blobs=str(tmp_path))

    @app.job("repeat")
    async def repeat(text: str) -> str:
        return text + text

    other.job("repeat")(repeat)

    async def story(world: World) -> None:
        await world.start(app)
        large, small = await app.enqueue_many(repeat, ["x" * 200_000, "y"])
        assert await large.result("10s") == "x" * 400_000
        assert await small.result("10s") == "yy"
        assert max(len(m.value() or b"") for m in world.read(INBOX) + world.read(STATE)) < 1_000
        status = await large.status()
        assert status.input_ref == f"queue:jobs.default/{large.id}/input"
        assert status.result_ref is not None
        assert status.result_ref.startswith(f"queue:jobs.default/{large.id}/result-")
        assert (await small.status()).input_ref is None
        assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == 2
        assert await other.job_handle("repeat", large.id).result("10s") == "x" * 400_000
        sync = app.enqueue_sync(repeat, "z" * 3_000)
        assert await sync.result("10s") == "z" * 6_000
        other.jobs.close()

    play(app, story)


def test_b9_blobs_are_deleted_when_the_job_is_forgotten_unless_the_type_keeps_them() -> None:
    shelf = Shelf()
    app = application(shelf)
    short = RetentionPolicy(completed=0)

    @app.job("dropped", retention=short)
    async def dropped(text: str) -> str:
        return text

    @app.job("kept", retention=short, blobs="keep")
    async def kept(text: str) -> str:
        return text

    async def story(world: World) -> None:
        await world.start(app)
        first = await app.enqueue(dropped, "x" * 5_000)
        second = await app.enqueue(kept, "y" * 5_000)
        assert await first.result("10s") == "x" * 5_000
        assert await second.result("10s") == "y" * 5_000
        await until(lambda: not any("x" in blob.decode() for blob in shelf.blobs.values()))
        await until(lambda: sum(m.value() is None for m in world.read(STATE)) == 2)
        assert sorted(name.split("/")[2][:6] for name in shelf.blobs) == ["input", "result"]
        assert {name.split("/")[1] for name in shelf.blobs} == {second.id}

    play(app, story)


def test_b9_a_duplicates_input_is_deleted_and_the_firsts_is_not() -> None:
    shelf = Shelf()
    app = application(shelf)

    @app.job("once")
    async def once(text: str) -> int:
        return len(text)

    async def story(world: World) -> None:
        await world.start(app)
        first = await app.enqueue(once, "x" * 5_000, dedup_id="d", delay="5s")
        second = await app.enqueue(once, "y" * 5_000, dedup_id="d")
        assert await second.duplicate_of() == first.id
        await until(lambda: len(shelf.blobs) == 1)
        assert await second.result("20s") == 5_000

    play(app, story)


def test_b9_a_dead_letter_keeps_its_input_so_that_it_can_be_redriven() -> None:
    shelf = Shelf()
    app = application(shelf)

    @app.job("fails", attempts=1, retention=RetentionPolicy(failed=0))
    async def fails(_text: str) -> None:
        raise RuntimeError("no")

    async def story(world: World) -> None:
        await world.start(app)
        handle = await app.enqueue(fails, "x" * 5_000)
        with pytest.raises(JobUnsuccessful):
            await handle.result("10s")
        await until(lambda: any(m.value() is None for m in world.read(STATE)))  # it is forgotten
        await asyncio.sleep(5)
        assert list(shelf.blobs) == [f"jobs.default/{handle.id}/input"]

    play(app, story)


def test_b9_an_input_that_was_edited_to_be_inline_is_taken_and_the_old_one_stays_for_the_letter_that_refers_to_it() -> (
    None
):
    shelf, ran = Shelf(), list[int]()
    app = application(shelf)

    @app.job("size", attempts=1, retention=RetentionPolicy(completed=0))
    async def size(text: str) -> int:
        ran.append(len(text))
        if len(text) > 10:
            raise RuntimeError("too long")
        return len(text)

    async def story(world: World) -> None:
        await world.start(app)
        handle = await app.enqueue(size, "x" * 5_000)
        await until(lambda: len(world.read(DEAD)) == 1)
        (letter,) = world.read(DEAD)
        codec = InboxCodec(app.codec, INBOX)
        request = codec.read(letter.value(), 1)
        assert isinstance(request, JobRequest)
        edited = codec.request(request._replace(payload=b'"short"', payload_ref=None))
        headers = DeliveryHeaders(0, 0, 0, INBOX, letter.partition(), 0, 1, "default", replay_id="r")
        world.cluster.producer("desk").send(
            "jobs.default.default.replay", letter.key(), edited, encode([], headers), letter.partition()
        )
        await until(lambda: len(ran) == 2)
        assert ran == [5_000, 5]
        await asyncio.sleep(5)
        assert list(shelf.blobs) == [f"jobs.default/{handle.id}/input"]

    play(app, story)


def test_b9_an_input_that_is_not_there_is_a_dead_letter_with_the_reason_and_a_store_that_is_down_is_waited_for() -> (
    None
):
    shelf, calls = Shelf(), list[int]()
    app = application(shelf)

    @app.job("size", attempts=2, backoff=Fixed("1s"))
    async def size(text: str) -> str:
        calls.append(len(text))
        return text

    async def story(world: World) -> None:
        await world.start(app)
        handle = await app.enqueue(size, "x" * 5_000, delay="2s")
        shelf.blobs.clear()
        with pytest.raises(JobUnsuccessful, match="is not there") as caught:
            await handle.result("20s")
        assert caught.value.error_class == "InputMissing"
        handle = await app.enqueue(size, "x" * 5_000, delay="2s")
        shelf.refuses = 2
        assert await handle.result("20s") == "x" * 5_000
        assert calls == [5_000]  # the result was stored at the third try, and the handler did not run again for it

    play(app, story)


def test_b9_a_worker_without_the_store_says_what_is_missing() -> None:
    shelf = Shelf()
    app, bare = application(shelf), application(None, "bare")

    async def size(text: str) -> int:
        return len(text)

    for each in (app, bare):
        each.job("size")(size)

    async def story(world: World) -> None:
        await world.start(bare)
        with pytest.raises(JobUnsuccessful, match="set PIPELINE_BLOBS at this worker") as caught:
            await (await app.enqueue("size", "x" * 5_000)).result("20s")
        assert caught.value.error_class == "NoBlobStore"
        bare.jobs.close()

    play(app, story)


def test_b9_what_is_too_large_is_refused_with_its_size() -> None:
    shelf = Shelf()
    app, bare = application(shelf), application(None, "bare")

    async def times(number: int) -> str:
        return "x" * number

    async def takes(_text: str) -> None: ...

    for each in (app, bare):
        each.job("times")(times)
        each.job("takes")(takes)

    async def story(world: World) -> None:
        with pytest.raises(PayloadTooLarge, match="more than 5000000: PIPELINE_BLOB_BYTES_MAX is the limit"):
            await app.enqueue("takes", "x" * 6_000_000)
        with pytest.raises(PayloadTooLarge, match="more than 900000: set PIPELINE_BLOBS"):
            await bare.enqueue("takes", "x" * 6_000_000)
        assert shelf.blobs == {}
        worker = await world.start(app)
        with pytest.raises(JobUnsuccessful, match="more than 5000000: PIPELINE_BLOB_BYTES_MAX is the limit") as caught:
            await (await app.enqueue("times", 6_000_000)).result("20s")
        assert caught.value.error_class == "ResultTooLarge"
        await world.stop(worker)
        await world.start(bare)
        with pytest.raises(JobUnsuccessful, match="set PIPELINE_BLOBS"):
            await (await bare.enqueue("times", 1_000_000)).result("20s")
        bare.jobs.close()

    play(app, story)


def test_b9_an_input_and_a_result_together_fit_into_an_entry() -> None:
    """Each alone is small enough to be inline; together they are not."""
    shelf = Shelf()
    app = application(shelf, blob_inline_bytes=600_000)

    @app.job("echo")
    async def echo(text: str) -> str:
        return text

    async def story(world: World) -> None:
        await world.start(app)
        handle = await app.enqueue(echo, "x" * 500_000)
        assert await handle.result("20s") == "x" * 500_000
        assert [name.split("/")[2][:6] for name in shelf.blobs] == ["result"]

    play(app, story)


def test_b9_a_later_owner_deletes_what_an_earlier_one_stored() -> None:
    shelf = Shelf()
    first, second = application(shelf, "first"), application(shelf, "second")

    async def times(number: int) -> str:
        return "x" * number

    first.job("times")(times)
    second.job("times", retention=RetentionPolicy(completed=0))(times)

    async def story(world: World) -> None:
        worker = await world.start(first)
        await (await first.enqueue("times", 5_000)).result("10s")
        assert len(shelf.blobs) == 1
        await world.stop(worker)
        await world.start(second)
        await until(lambda: not shelf.blobs)

    play(first, story)
