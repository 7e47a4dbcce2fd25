"""`pipeline run`: the workers of an application, in one process or several."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.access import JsonOption, load_app
from pipeline.cli.output import emit_json

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def run(
    target: Annotated[str, typer.Argument(help="The application, for example mymodule:app.", metavar="MODULE:APP")],
    processes: Annotated[int, typer.Option("--processes", min=1, max=256, help="Worker processes.")] = 1,
    group: Annotated[
        list[str] | None, typer.Option("--group", help="Only this group; may be given several times.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option("--metrics-port", min=0, max=65_535, help="Serve /metrics and /health here.")
    ] = None,
    metrics_host: Annotated[
        str,
        typer.Option(
            "--metrics-host", help="Address for --metrics-port; another than loopback is open to the network."
        ),
    ] = "127.0.0.1",
    as_json: JsonOption = False,
) -> None:
    """Run the subscriptions of an application until interrupted (Ctrl-C or SIGTERM drain and stop cleanly).

    Topics must exist: `pipeline topics apply` makes them. Exit code 2: a declaration or a topic setting is wrong.

    Example: pipeline run mymodule:app --processes 4 --metrics-port 9100
    """
    load_app(target)
    from pipeline.worker import supervisor

    code = supervisor.run(
        target, processes=processes, groups=tuple(group or ()), metrics_port=metrics_port, host=metrics_host
    )
    if as_json:
        emit_json({"state": "stopped", "target": target, "exit_code": code})
    raise typer.Exit(code)
