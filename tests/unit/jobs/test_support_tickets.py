"""The worked example's operational checks: what a production queue must show of examples/support_tickets.py, on whole workers in memory.

Not here: limits that hold across processes.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import structlog

from examples import support_tickets
from examples.support_tickets import RateLimited, Refused, Step, Ticket, application, outcome, submit
from pipeline import Pipeline, Settings
from pipeline.codec.jobs import InboxCodec
from pipeline.model.errors import JobMissing, JobUnsuccessful
from pipeline.model.job_policies import RetentionPolicy
from pipeline.model.job_states import JobState
from pipeline.model.jobs import JobRequest
from tests.unit.jobs.worlds import ADDRESS, World, play, until

DEAD = "jobs.models.models.dlq"


@pytest.fixture(autouse=True)
def silent() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])


class Provider:
    """A model provider that counts, and does what a test says: `trouble` may raise, or wait."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, str]] = []
        self.began_s: list[float] = []
        self.running = self.most = 0
        self.took_s = 0.01
        self.trouble: Callable[[str, str], Awaitable[None]] | None = None

    async def complete(self, purpose: str, text: str, once: str) -> str:
        self.calls.append((purpose, text, once))
        self.began_s.append(asyncio.get_running_loop().time())
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.took_s)
            if self.trouble is not None:
                await self.trouble(purpose, text)
        finally:
            self.running -= 1
        return {"classify": "billing", "draft": f"About {text}", "evaluate": "0.9"}[purpose]

    def count(self) -> dict[str, int]:
        return dict(Counter(purpose for purpose, _, _ in self.calls))


def app_of(provider: Provider, name: str = "app", permissions: str = "articles:read") -> Pipeline:
    return application(
        name, provider, settings=Settings(broker=ADDRESS, session_timeout_s=6.0, permissions=permissions)
    )


def ticket(number: int = 1, **more: Any) -> Ticket:
    return Ticket(**{"id": f"t{number}", "tenant": "acme", "text": f"Where is refund {number}?", **more})


EACH_ONCE = {"classify": 1, "draft": 1, "evaluate": 1}


# -- eight checks of a production queue


def test_a_worker_that_dies_in_a_step_is_recovered_and_no_step_before_it_runs_again() -> None:
    provider, hangs = Provider(), [True]
    first_app, second_app = app_of(provider, "first"), app_of(provider, "second")

    async def trouble(purpose: str, _text: str) -> None:
        if purpose == "draft" and hangs:
            await asyncio.sleep(3_600)

    provider.trouble = trouble

    async def story(world: World) -> None:
        worker = await world.start(first_app)
        handle = await submit(second_app, ticket())
        await until(lambda: provider.count().get("draft") == 1)
        await asyncio.sleep(2)  # it is written that it runs
        world.kill(worker)
        hangs.clear()
        await world.start(second_app)
        step = await outcome(second_app, handle, "120s")
        assert (step.answer, step.score) == ("About Where is refund 1?", 0.9)
        assert provider.count() == {"classify": 1, "draft": 2, "evaluate": 1}, "only the step that died runs again"
        (cut_off, again) = [once for purpose, _, once in provider.calls if purpose == "draft"]
        assert cut_off == again, "and the provider can know it by its id"
        first_app.jobs.close()

    play(second_app, story)


def test_duplicates_are_safe() -> None:
    provider = Provider()
    app = app_of(provider)

    async def story(world: World) -> None:
        await world.start(app)
        handles = [await submit(app, ticket()) for _ in range(3)]
        steps = [await outcome(app, handle) for handle in handles]
        assert len({step.answer for step in steps}) == 1
        await submit(app, ticket())  # long after it is done
        await asyncio.sleep(30)
        assert provider.count() == EACH_ONCE

    play(app, story)


def test_retries_stop() -> None:
    provider = Provider()
    app = app_of(provider)

    async def trouble(purpose: str, text: str) -> None:
        if "refund 1" in text:
            raise ConnectionError("the model is down")

    provider.trouble = trouble

    async def story(world: World) -> None:
        await world.start(app)
        broken, whole = await submit(app, ticket(1)), await submit(app, ticket(2))
        with pytest.raises(JobUnsuccessful, match="given up after 5 attempts: ConnectionError: the model is down"):
            await outcome(app, broken, "10m")
        await asyncio.sleep(600)
        assert sum("refund 1" in text for _, text, _ in provider.calls) == 5
        assert (await outcome(app, whole)).score == 0.9, "others go on"

    play(app, story)


def test_limits_hold() -> None:
    provider = Provider()
    provider.took_s = 1.0
    app = app_of(provider)

    async def story(world: World) -> None:
        await world.start(app)
        handles = [await submit(app, ticket(number)) for number in range(12)]
        for handle in handles:
            await outcome(app, handle, "5m")
        assert provider.most == 2
        assert len(provider.calls) == 36

    play(app, story)


def test_urgent_work_goes_first_and_the_rest_is_not_forgotten() -> None:
    provider = Provider()
    provider.took_s = 1.0
    app = app_of(provider)

    async def story(world: World) -> None:
        for number in range(40):
            await submit(app, ticket(number))
        await submit(app, ticket(99, urgent=True))
        await world.start(app)
        await until(lambda: any(purpose == "evaluate" for purpose, _, _ in provider.calls), 300)
        (at,) = [n for n, call in enumerate(provider.calls) if call[0] == "evaluate"]
        assert "refund 99" in provider.calls[at][1], "all its steps are done before another ticket's last one"
        assert at < 20
        await until(lambda: provider.count().get("evaluate") == 41, 600)

    play(app, story, partitions=1)


def test_dead_letters_are_visible_with_the_input_and_the_reason() -> None:
    provider = Provider()
    app = app_of(provider)

    async def trouble(purpose: str, _text: str) -> None:
        if purpose == "draft":
            raise Refused("the text is not allowed")

    provider.trouble = trouble

    async def story(world: World) -> None:
        await world.start(app)
        handle = await submit(app, ticket())
        with pytest.raises(JobUnsuccessful, match="given up after 1 attempt: Reject: the text is not allowed"):
            await outcome(app, handle)
        await until(lambda: len(world.read(DEAD)) == 1)
        (letter,) = world.read(DEAD)
        headers = {name: value.decode() for name, value in letter.headers() or ()}
        assert (headers["pl.error.class"], headers["pl.error.message"]) == ("Reject", "the text is not allowed")
        request = InboxCodec(app.codec, "jobs.models").read(letter.value(), 0)
        assert isinstance(request, JobRequest)
        classified: Step = await handle.result("1s")
        assert request.workflow_id == handle.id, "which workflow it belongs to"
        assert json.loads(request.payload)["ticket"]["text"] == "Where is refund 1?", (
            "the input is in the failure's record"
        )
        retrieved: Step = await app.job_handle("retrieve", classified.next_job or "").result("10s")
        status = await app.job_handle("draft", retrieved.next_job or "").status()
        assert (status.state, status.attempt, status.error_class) == (JobState.DEAD_LETTER, 1, "Reject")

    play(app, story)


def test_a_job_is_traced_to_its_output() -> None:
    provider = Provider()
    app = app_of(provider)

    async def story(world: World) -> None:
        await world.start(app)
        handle = await submit(app, ticket())
        steps: list[Step] = [await handle.result("1m")]
        for job_type in ("retrieve", "draft", "evaluate"):
            steps.append(await app.job_handle(job_type, steps[-1].next_job or "").result("1m"))
        assert steps[-1] == await outcome(app, handle)
        assert [step.category for step in steps] == ["billing"] * 4
        assert (steps[-1].context, steps[-1].answer) == (["Refunds take three days."], "About Where is refund 1?")
        codec = InboxCodec(app.codec, "jobs.models")
        asked = [codec.read(record.value(), 0) for record in world.read("jobs.models")]
        later = [request for request in asked if isinstance(request, JobRequest) and request.type != "classify"]
        assert {request.workflow_id for request in later} == {handle.id}
        assert {request.id for request in later} == {steps[1].next_job, steps[2].next_job}
        known = {once for _, _, once in provider.calls}
        assert known == {f"classify:{handle.id}", f"draft:{steps[1].next_job}", f"evaluate:{steps[2].next_job}"}

    play(app, story)


def test_permissions_are_checked_when_a_job_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it runs and not where it was asked for: a worker that may not is asked by a service that may."""

    class Articles(dict[str, list[str]]):
        def get(self, *_: Any) -> list[str]:  # type: ignore[override]
            raise AssertionError("they were read")

    monkeypatch.setattr(support_tickets, "ARTICLES", Articles())
    provider = Provider()
    worker, service = app_of(provider, "worker", permissions="articles:list, mail:*"), app_of(provider, "service")

    async def story(world: World) -> None:
        await world.start(worker)
        handle = await submit(service, ticket())
        with pytest.raises(JobUnsuccessful, match="articles:read"):
            await outcome(service, handle)
        assert provider.count() == {"classify": 1}, "what needs no permission ran, and nothing after it"
        await until(lambda: len(world.read("jobs.steps.steps.dlq")) == 1)
        (letter,) = world.read("jobs.steps.steps.dlq")
        headers = {name: value.decode() for name, value in letter.headers() or ()}
        assert headers["pl.error.class"] == "PermissionMissing"
        assert "articles:read" in headers["pl.error.message"]
        service.jobs.close()

    play(worker, story)


# -- common fakes, shown absent (beside those that a check above shows: limits, step memory, dead letters, input in failures)


def test_finished_jobs_are_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support_tickets, "KEPT", RetentionPolicy(completed=3, failed=3))
    provider = Provider()
    app = app_of(provider)

    async def story(world: World) -> None:
        await world.start(app)
        handles = []
        for number in range(8):
            handles.append(await submit(app, ticket(number)))
            await outcome(app, handles[-1])
        await asyncio.sleep(10)
        kept = [await _kept(handle) for handle in handles]
        assert kept == [False] * 5 + [True] * 3

    play(app, story, partitions=1)


async def _kept(handle: Any) -> bool:
    try:
        return (await handle.status()).state is JobState.COMPLETED
    except JobMissing:
        return False


def test_a_429_is_waited_out_as_long_as_it_says_and_costs_nobody_else() -> None:
    provider = Provider()
    app = app_of(provider)

    async def trouble(purpose: str, text: str) -> None:
        if purpose == "draft" and "refund 1?" in text and provider.count()["draft"] <= 2:
            raise RateLimited(45)

    provider.trouble = trouble

    async def story(world: World) -> None:
        await world.start(app)
        limited = await submit(app, ticket(1))
        await until(lambda: provider.count().get("draft") == 1)
        other = await submit(app, ticket(2))
        began = world.loop.time()
        await outcome(app, other)
        assert world.loop.time() - began < 5, "another ticket does not wait for it"
        await outcome(app, limited, "5m")
        times = [
            at for at, (purpose, text, _) in zip(provider.began_s, provider.calls, strict=True)
            if purpose == "draft" and "refund 1?" in text
        ]  # fmt: skip
        assert times[1] - times[0] >= 45, "not before the provider's Retry-After"

    play(app, story)


def test_every_request_has_an_id_that_is_known_unknown_or_expired() -> None:
    provider = Provider()
    app = app_of(provider)

    async def story(world: World) -> None:
        await world.start(app)
        handle = await submit(app, ticket())
        assert (await app.job_handle("classify", handle.id).result("10s")).category == "billing"
        with pytest.raises(JobMissing, match="not known"):
            await app.job_handle("classify", "ticket-7").result("10s")

    play(app, story)


def test_every_type_states_its_deadline_its_attempts_and_how_many_run_at_once() -> None:
    app = app_of(Provider())
    models, steps = app.subscriptions
    assert models.flow.concurrency == 2
    assert {name: (each.policy.timeout_ms, each.policy.attempts) for name, each in models.jobs.types.items()} == {  # type: ignore[union-attr]
        "classify": (30_000, 5), "draft": (30_000, 5), "evaluate": (30_000, 5),
    }  # fmt: skip
    retrieve = steps.jobs.types["retrieve"].policy  # type: ignore[union-attr]
    assert (retrieve.timeout_ms, retrieve.attempts, retrieve.concurrency) == (10_000, 3, 50)
