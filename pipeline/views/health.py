"""`/health` and `/metrics` of a views process on Faust's own web server, when it has a port."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.views import metrics

if TYPE_CHECKING:
    from pipeline.views.app import Views


def serve(views: Views) -> None:
    """Register the pages, and the signals that keep the partition gauge right. Without a web port only the latter."""
    app: Any = views.app
    source = views.topics.source

    async def count(_app: Any, *_args: Any, **_kwargs: Any) -> None:
        metrics.PARTITIONS.set(sum(1 for tp in app.consumer.assignment() if tp.topic == source))

    app.on_partitions_assigned.connect(count, weak=False)

    if not views.policy.web_port:
        return

    @app.page("/health")  # type: ignore[untyped-decorator]
    async def health(web: Any, _request: Any) -> Any:
        partitions = sum(1 for tp in app.consumer.assignment() if tp.topic == source)
        consuming = partitions > 0 and not app.rebalancing
        body = {"status": "consuming" if consuming else "not consuming", "partitions": partitions}
        return web.json(body, status=200 if consuming else 503)

    @app.page("/metrics")  # type: ignore[untyped-decorator]
    async def scrape(web: Any, _request: Any) -> Any:
        from prometheus_client import generate_latest

        return web.bytes(generate_latest(), content_type="text/plain")
