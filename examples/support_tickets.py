"""Support tickets as background jobs: classify -> retrieve context -> draft -> evaluate, each a job of its own.

pipeline topics apply support_tickets:app
PIPELINE_PERMISSIONS=articles:read pipeline run support_tickets:app
python support_tickets.py           # asks for a ticket and waits for its answer

Who may read the articles is the worker's to say: without the permission that step is a dead letter with the reason, and was not run.
What a job has done is kept with it, and the next one goes out together with its ending. So no step runs twice because of a crash in
another one, and no model call that was answered and kept is paid for twice.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from pydantic import BaseModel

from pipeline import Exponential, JobContext, Pipeline, Reject, RetentionPolicy, Retry

URGENT = 10
MODEL_CALLS_AT_ONCE = 2
KEPT = RetentionPolicy(completed=1_000, failed=5_000)


class Ticket(BaseModel):
    id: str
    tenant: str
    text: str
    urgent: bool = False


class Step(BaseModel):
    """What is known of a ticket after a step; `next_job` is the id of the following one. A ticket's jobs share a workflow id."""

    ticket: Ticket
    category: str = ""
    context: list[str] = []
    answer: str = ""
    score: float = 0.0
    next_job: str | None = None


class RateLimited(Exception):
    """A model provider's 429, with its Retry-After."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"rate limited, again in {retry_after_s:g} s")
        self.retry_after_s = retry_after_s


class Refused(Exception):
    """The provider's policy does not allow the text: no attempt will change that."""


class Models(Protocol):
    """Your model client, and what it answers. `once`: an id under which the provider knows a call that is made again."""

    async def complete(self, purpose: str, text: str, once: str) -> str: ...


class StandIn:
    """Answers without a model; needs no key."""

    async def complete(self, purpose: str, text: str, once: str) -> str:
        return {"classify": "billing", "draft": f"About {text!r}: it was sent on Monday.", "evaluate": "0.9"}[purpose]


ARTICLES = {"billing": ["Refunds take three days."], "other": ["See the handbook."]}


def application(name: str = "tickets", models: Models | None = None, **settings: Any) -> Pipeline:
    """The application: tests give it models that count, fail and break."""
    app = Pipeline(name, **settings)
    client = models or StandIn()
    # Calls of models have a queue of their own, so that at most so many run at once in a process; the other steps don't wait for it.
    app.queue("models", concurrency=MODEL_CALLS_AT_ONCE)

    async def complete(purpose: str, text: str, job: JobContext) -> str:
        try:
            return await client.complete(purpose, text, job.idempotency_key)
        except RateLimited as limited:
            raise Retry(str(limited), after=limited.retry_after_s) from limited
        except Refused as refused:
            raise Reject(str(refused)) from refused

    async def then(job_type: str, step: Step, job: JobContext) -> Step:
        """The next step goes out with this one's result, once, however often this one runs."""
        asked = await job.enqueue(
            job_type,
            step,
            tenant=step.ticket.tenant,
            workflow_id=job.workflow_id or job.id,
            priority=URGENT if step.ticket.urgent else 0,
        )
        return step.model_copy(update={"next_job": asked.id})

    models_of = {"queue": "models", "timeout": "30s", "attempts": 5, "retention": KEPT}
    models_of["backoff"] = Exponential("1s", factor=2, max_delay="1m")

    @app.job("classify", **models_of)
    async def classify(ticket: Ticket, job: JobContext) -> Step:
        category = await complete("classify", ticket.text, job)
        job.log.info("classified", ticket=ticket.id, category=category)
        return await then("retrieve", Step(ticket=ticket, category=category), job)

    @app.job(
        "retrieve",
        queue="steps",
        timeout="10s",
        attempts=3,
        concurrency=50,
        retention=KEPT,
        permissions=["articles:read"],
    )
    async def retrieve(step: Step, job: JobContext) -> Step:
        context = ARTICLES.get(step.category, ARTICLES["other"])
        return await then("draft", step.model_copy(update={"context": context}), job)

    @app.job("draft", **models_of)
    async def draft(step: Step, job: JobContext) -> Step:
        answer = await complete("draft", step.ticket.text, job)
        return await then("evaluate", step.model_copy(update={"answer": answer}), job)

    @app.job("evaluate", **models_of)
    async def evaluate(step: Step, job: JobContext) -> Step:
        score = float(await complete("evaluate", step.answer, job))
        return step.model_copy(update={"score": score})

    return app


async def submit(app: Pipeline, ticket: Ticket) -> Any:
    """The handle of the ticket's first job: the same for a ticket that is sent twice within a day."""
    return await app.enqueue(
        "classify", ticket, dedup_id=ticket.id, tenant=ticket.tenant, priority=URGENT if ticket.urgent else 0
    )


async def outcome(app: Pipeline, first: Any, timeout: str = "1m") -> Step:
    """From a ticket's first job along its steps to the last one's result."""
    step: Step = await first.result(timeout)
    for job_type in ("retrieve", "draft", "evaluate"):
        assert step.next_job is not None
        step = await app.job_handle(job_type, step.next_job).result(timeout)
    return step


app = application()


async def main() -> None:
    first = await submit(app, Ticket(id="7", tenant="acme", text="Where is my refund?"))
    step = await outcome(app, first)
    print(f"{first.id} {step.score} {step.answer}")
    app.jobs.close()


if __name__ == "__main__":
    asyncio.run(main())
