"""`pipeline views`: the stream views (run summaries and rates) as Faust workers in processes of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def views_command(
    broker: Annotated[str, typer.Option("--broker", help="Bootstrap address. Default: PIPELINE_BROKER.")] = "",
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes; partitions are shared among them.")] = 1,
    store: Annotated[str, typer.Option("--store", help="Where tables are kept: memory or rocksdb.")] = "memory",
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="Folder of the rocksdb tables.")] = None,
    prefix: Annotated[str, typer.Option("--prefix", help="Before topics and groups. Default: PIPELINE_PREFIX.")] = "",
    registry: Annotated[str, typer.Option("--registry", help="Registry URL. Default: PIPELINE_REGISTRY.")] = "",
    web_port: Annotated[
        int,
        typer.Option("--web-port", help="/health and /metrics on loopback, one port per worker from here; 0 = off."),
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object at start and one at the end.")] = False,
) -> None:
    """Keep agent.run.summaries and agent.run.rates up to date from agent.run.events, until SIGTERM or Ctrl-C.

    Exit code 0 after a clean stop, 1 when a worker crashed too often, 2 for a wrong setting or topology, 3 when Kafka
    or the registry can't be reached.

    Example: pipeline views --broker localhost:9092 --workers 2 --store rocksdb --data-dir ./views-data
    """
    import signal
    import threading

    from pipeline.cli import output
    from pipeline.model.errors import ConfigurationError
    from pipeline.settings import Settings
    from pipeline.views import processes
    from pipeline.views.policy import ViewsPolicy

    settings = Settings.load()
    if settings.client_settings() or settings.registry_user_info.get_secret_value() or settings.registry_ca:
        raise ConfigurationError(
            "PIPELINE_CLIENT, PIPELINE_USERNAME, PIPELINE_REGISTRY_USER_INFO and PIPELINE_REGISTRY_CA do not reach "
            "Faust: the views only connect without authentication so far, so unset them for this process."
        )
    policy = ViewsPolicy(
        bootstrap=broker or settings.broker,
        prefix=prefix or settings.prefix,
        store=store,
        data_dir=str(data_dir) if data_dir else "",
        registry=registry or settings.registry,
        web_port=web_port,
    )
    processes.check_store(policy)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    topics = policy.topics
    if as_json:
        output.emit_json({"state": "starting", "workers": workers, "group": policy.group, "source": topics.source})
    else:
        output.note(f"views: {topics.source} -> {topics.summaries}, {topics.rates} ({workers} workers, {store})")
    code = processes.run(policy, workers, stop)
    if as_json:
        output.emit_json({"state": "stopped", "exit_code": code})
    raise typer.Exit(code)
