"""`pipeline resume`: undoes `pipeline pause`."""

from __future__ import annotations

import typer

from pipeline.cli.access import BrokerOption, GroupArgument, JsonOption, real
from pipeline.cli.pause import switch

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def resume(group: GroupArgument, broker: BrokerOption = None, as_json: JsonOption = False) -> None:
    """Resume a subscription that was paused, by `pipeline pause` or by its own guard against floods of dead letters.

    Example: pipeline resume billing
    """
    switch(real(group), None, "", broker, as_json, on=False)
