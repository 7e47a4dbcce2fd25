"""F4 for jobs: permissions looked at before every execution, and inputs that hold a secret or too much refused at the caller."""

from __future__ import annotations

from typing import Any

import pytest
import structlog

from pipeline import Pipeline, Settings
from pipeline.model.errors import ConfigurationError, InvalidJob, JobUnsuccessful, PayloadTooLarge, SecretInPayload
from pipeline.model.job_policies import Fixed
from pipeline.model.permissions import Permissions
from pipeline.model.secret_shapes import secret_field
from tests.unit.jobs.worlds import ADDRESS, World, application, play, until

INBOX, STATE, DEAD = "jobs.default", "jobs.default.default.state", "jobs.default.default.dlq"
KEY = "sk-" + "proj-" + "a1B2c3D4" * 6


@pytest.fixture(autouse=True)
def silent() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])


def scoped(permissions: str, name: str = "app") -> Pipeline:
    return Pipeline(name, settings=Settings(broker=ADDRESS, session_timeout_s=6.0, permissions=permissions))


@pytest.mark.parametrize(
    ("granted", "needed", "missing"),
    [
        ("", [], []),
        ("", ["tickets:read"], ["tickets:read"]),
        ("tickets:read", ["tickets:read", "tickets:write"], ["tickets:write"]),
        ("tickets:*", ["tickets:read", "ticketsother:read", "tickets"], ["tickets", "ticketsother:read"]),
        ("tickets:eu:*", ["tickets:eu:read", "tickets:us:read"], ["tickets:us:read"]),
        (" a , b,,", ["a", "b"], []),
        ("*", ["anything:at:all"], []),
    ],
)
def test_f4_nothing_is_granted_that_is_not_named(granted: str, needed: list[str], missing: list[str]) -> None:
    assert Permissions.of(granted).missing(needed) == missing


@pytest.mark.parametrize("wrong", ["tickets read", "*:read", "tickets:**", "a;b", ":", "tickets:"])
def test_f4_a_setting_that_means_nothing_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigurationError, match="PIPELINE_PERMISSIONS has"):
        Permissions.of(wrong)


@pytest.mark.parametrize("wrong", ["tickets:read", ["tickets:*"], ["*"], [3], 5])
def test_f4_a_job_needs_names_and_nothing_else(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="permissions"):
        application().job("one", permissions=wrong)


def test_f4_a_worker_runs_only_what_it_was_granted_and_the_rest_is_a_dead_letter_with_the_reason() -> None:
    app, ran = scoped("tickets:read, mail:*"), list[str]()

    @app.job("read", permissions=["tickets:read"])
    async def read(_given: None) -> None:
        ran.append("read")

    @app.job("write", permissions=["tickets:read", "tickets:write", "admin"])
    async def write(_given: None) -> None:
        ran.append("write")

    async def story(world: World) -> None:
        await world.start(app)
        await (await app.enqueue(read)).result("10s")
        with pytest.raises(JobUnsuccessful, match="admin, tickets:write, which this worker is not granted") as caught:
            await (await app.enqueue(write)).result("10s")
        assert caught.value.error_class == "PermissionMissing"
        await until(lambda: len(world.read(DEAD)) == 1)
        headers = dict(world.read(DEAD)[0].headers() or ())
        assert headers["pl.error.class"] == b"PermissionMissing"
        assert headers["pl.attempt"] == b"1"
        assert ran == ["read"]

    play(app, story)


def test_f4_permissions_are_looked_at_before_every_execution_and_not_only_before_the_first() -> None:
    """The first attempt runs on a worker that may; the one after it on a worker that may not."""
    granted, scant, ran = scoped("tickets:read", "granted"), scoped("", "scant"), list[str]()

    async def fails(_given: None) -> None:
        ran.append("ran")
        raise RuntimeError("once more")

    for app in (granted, scant):
        app.job("read", permissions=["tickets:read"], attempts=3, backoff=Fixed("20s"))(fails)

    async def story(world: World) -> None:
        worker = await world.start(granted)
        handle = await granted.enqueue("read")
        async for update in handle.updates():
            if update.state.value == "retrying":
                break
        await world.stop(worker)
        await world.start(scant)
        handle = scant.job_handle("read", handle.id)
        with pytest.raises(JobUnsuccessful, match="which this worker is not granted"):
            await handle.result("60s")
        assert ran == ["ran"]
        scant.jobs.close()

    play(granted, story)


def test_f4_an_input_that_looks_like_a_secret_is_refused_with_its_place_and_without_its_value() -> None:
    app, allows = application(), application("allows")

    @app.job("one")
    async def one(_given: dict[str, Any]) -> None: ...

    @allows.job("one", secrets="allow")
    async def other(_given: dict[str, Any]) -> None: ...

    cases: list[tuple[dict[str, Any], str]] = [
        ({"items": [{"id": 1}, {"text": f"use {KEY} please"}]}, "items[1].text"),
        ({"config": {"api_key": "hunter2hunter2"}}, "config.api_key"),
        ({"url": "postgres://me:hunter2@db/x"}, "url"),
        ({"deep": [[[KEY]]]}, "deep[0][0][0]"),
        ({KEY: 1}, "[secret]"),
    ]

    async def story(world: World) -> None:
        for given, field in cases:
            with pytest.raises(SecretInPayload) as caught:
                await app.enqueue(one, given)
            assert caught.value.field == field
            assert f"in {field}," in str(caught.value)
            assert "hunter2" not in str(caught.value)
            assert KEY not in str(caught.value)
            assert isinstance(caught.value, InvalidJob)
        assert world.read(INBOX) == []
        await app.enqueue(one, {"token_count": 3, "text": "what is a password?"})
        await allows.enqueue(other, cases[0][0])
        allows.jobs.close()

    play(app, story)


def test_f4_a_value_without_a_secret_has_no_place_of_one() -> None:
    assert secret_field({"a": [1, None, True, {"b": "text"}]}) is None
    assert secret_field(KEY) == ""


def test_f4_an_input_that_is_too_large_is_refused_at_the_caller() -> None:
    app = application()

    @app.job("one")
    async def one(_given: str) -> None: ...

    async def story(world: World) -> None:
        with pytest.raises(PayloadTooLarge, match="has 1000002 bytes, more than 900000") as caught:
            await app.enqueue(one, "x" * 1_000_000)
        assert (caught.value.size, caught.value.most) == (1_000_002, 900_000)
        assert world.read(INBOX) == []

    play(app, story)


def test_f4_a_failure_of_any_length_fits_into_the_store() -> None:
    app = application()

    @app.job("wordy", attempts=2, backoff=Fixed("1s"))
    async def wordy(_given: None) -> None:
        raise RuntimeError("no " * 1_000_000)

    async def story(world: World) -> None:
        await world.start(app)
        with pytest.raises(JobUnsuccessful, match="no no no"):
            await (await app.enqueue(wordy)).result("20s")
        assert max(len(message.value() or b"") for message in world.read(STATE)) < 10_000

    play(app, story)
