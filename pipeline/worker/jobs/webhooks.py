"""The handler of the jobs that tell webhooks of endings, and the webhooks that an application declared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from pipeline.model.errors import ConfigurationError
from pipeline.model.job_policies import check_text
from pipeline.model.job_types import JobType
from pipeline.model.job_webhooks import DELIVERY, DELIVERY_POLICY
from pipeline.model.outcome import Reject
from pipeline.model.policies import check_kind
from pipeline.worker.jobs.context import JobContext
from pipeline.worker.webhook import Refused, Webhook

ANSWER_S = 10.0


class Delivery(BaseModel):
    webhook: str
    body: dict[str, Any]


class Webhooks:
    """By name, so that neither addresses nor secrets are in the topics, and nobody who may enqueue can make a worker post anywhere."""

    def __init__(self) -> None:
        self._by_name: dict[str, Webhook] = {}

    def declare(self, name: str, url: str, secret: str | None) -> None:
        """Without a secret nothing is signed, and an empty one is no wish for that. Raises ConfigurationError."""
        check_text("name", name)
        if secret is not None and (not isinstance(secret, str) or not secret):
            raise ConfigurationError(
                f"secret of webhook {name!r} must be a text that is not empty: leave it out to post unsigned"
            )
        check_kind("url", url, str, "a text such as https://crm.example/hook")
        if name in self._by_name:
            raise ConfigurationError(f"webhook {name!r} is declared twice: give each one its own name")
        self._by_name[name] = Webhook(url, secret or "", f"the url of webhook {name!r}")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._by_name)

    def types(self) -> Mapping[str, JobType]:
        """What each queue has beside its own types, where there are webhooks."""
        if not self._by_name:
            return {}
        return {DELIVERY: JobType(DELIVERY, self._deliver, DELIVERY_POLICY, Delivery, type(None), is_async=False)}

    def _deliver(self, delivery: Delivery, job: JobContext) -> None:
        """An answer that stays the same is terminal; whatever else went wrong is tried again, as of any job."""
        webhook = self._by_name.get(delivery.webhook)
        if webhook is None:
            raise Reject(
                f"webhook {delivery.webhook!r} is not declared by this worker: use app.webhook, then retry the job"
            )
        about = {"Pipeline-Job-Id": str(delivery.body.get("id", "")), "Pipeline-Delivery-Id": job.id}
        body = json.dumps(delivery.body, separators=(",", ":")).encode()
        try:
            webhook.send(about, body, ANSWER_S)
        except Refused as error:
            raise Reject(str(error)) from None
