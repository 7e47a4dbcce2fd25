"""`pipeline pause`: a switch on the control topic that keeps a group's workers from taking new work."""

from __future__ import annotations

import typer

from pipeline.cli.access import (
    BrokerOption,
    GroupArgument,
    JsonOption,
    WhoOption,
    WhyOption,
    control_topic,
    now_ms,
    open_cluster,
    real,
    whoami,
)
from pipeline.cli.output import clean, emit_json, line

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def pause(
    group: GroupArgument,
    who: WhoOption = None,
    why: WhyOption = "",
    broker: BrokerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Pause a subscription: its workers finish what they run and take no new work until `pipeline resume`.

    They stay in the group, keep their partitions and commit. Pausing a paused group renews who and why.

    Example: pipeline pause billing --why "provider is down"
    """
    switch(real(group), who, why, broker, as_json, on=True)


def switch(group: str, who: str | None, why: str, broker: str | None, as_json: bool, on: bool) -> None:
    """Turn the pause of a group on or off, and say what changed."""
    from pipeline.inspect.collect import find_layouts
    from pipeline.inspect.control import read_switches, write_switch
    from pipeline.model.control import Pause

    with open_cluster(broker) as cluster:
        admin = cluster.admin()
        try:
            find_layouts(admin, group)
        finally:
            admin.close()
        before = read_switches(cluster, control_topic()).paused(group)
        # Resuming is always told: workers whose flood guard tripped wait for it without any switch being on.
        write_switch(cluster, control_topic(), Pause(group, who or whoami(), why, now_ms()), on)
    if as_json:
        emit_json({"group": group, "paused": on, "changed": on is (before is None)})
    elif on:
        line(f"Group {clean(group)} is paused; `pipeline resume {clean(group)}` lets it go on.", "green")
    elif before is not None:
        line(f"Group {clean(group)} goes on.", "green")
    else:
        line(f"Group {clean(group)} was not paused by anyone; workers that paused themselves go on.", "yellow")
