"""`pipeline keys`: skip the record that blocks a key, or release what waits behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

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
from pipeline.cli.output import clean, emit_json, line, text_of
from pipeline.model.errors import ConfigurationError
from pipeline.model.keys import key_text, typed_keys

if TYPE_CHECKING:
    from pipeline.inspect.explain import Explanation
    from pipeline.model.cluster import Cluster
    from pipeline.model.control import Switch

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    help="Skip the record that blocks a key, or release what waits behind it.",
)

KeyArgument = Annotated[str, typer.Argument(help="The record key, for example a run id.", metavar="KEY")]


def _waiting(cluster: Cluster, group: str, key: str) -> list[Explanation]:
    """Unresolved records of the key, lowest origin first."""
    from pipeline.inspect.collect import Collector, Reach, find_layouts, look_up

    admin = cluster.admin()
    try:
        entries = find_layouts(admin, group)
    finally:
        admin.close()
    found = []
    for entry in entries:
        collector = Collector(cluster, entry, control_topic())
        try:
            found += look_up(collector, key, Reach(records=1))
        finally:
            collector.close()
    mine = next((those for k in typed_keys(key) if (those := [e for e in found if e.key == k])), [])
    held = next((e for e in mine if e.state in ("held", "releasing")), None)
    if held is not None:
        raise ConfigurationError(
            f"key {key!r} is held behind the dead letter of {held.topic} partition {held.partition} offset {held.origin_offset}: "
            "`pipeline dlq redrive` or `pipeline dlq release` of the key lets it go"
        )
    return [e for e in mine if e.state in ("parked", "blocked", "due")]


def _tell(switch: Switch | None, waiting: list[Explanation], group: str, key: str, text: str, as_json: bool) -> None:
    if as_json:
        head = waiting[0] if waiting else None
        emit_json(
            {
                "group": group,
                "key": key,
                "done": switch is not None,
                "waiting": len(waiting),
                "topic": head.topic if head else None,
                "partition": head.partition if head else None,
                "origin_offset": head.origin_offset if head else None,
                "key_text": key_text(head.key) if head else None,
            }
        )
    elif switch is None:
        line(f"No record of key {clean(key)} waits in a lane of group {clean(group)}.", "yellow")
    else:
        line(text, "green")
    raise typer.Exit(0 if switch is not None else 1)


@app.command()
def skip(
    group: GroupArgument,
    key: KeyArgument,
    who: WhoOption = None,
    why: WhyOption = "",
    broker: BrokerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give up the record that blocks a key: when it is due it goes to the dead letters without running.

    Those behind it no longer wait for it; each runs when its own tier lets it go.

    Exit code 1: nothing of this key waits.

    Example: pipeline keys skip billing run-7 --why "bad invoice, fixed by hand"
    """
    from pipeline.inspect.control import write_switch
    from pipeline.model.control import Skip

    name, switch = real(group), None
    with open_cluster(broker) as cluster:
        waiting = _waiting(cluster, name, key)
        if waiting:
            head = waiting[0]
            who = who or whoami()
            switch = Skip(name, head.topic, head.partition, head.origin_offset, head.key, who, why, now_ms())
            write_switch(cluster, control_topic(), switch, on=True)
    text = ""
    if switch is not None:
        text = (
            f"Skipping {clean(switch.topic)} partition {switch.partition} offset {switch.origin_offset} "
            f"(key {text_of(switch.key)}): when it is due it goes to the dead letters without running; "
            f"waiting behind it: {len(waiting) - 1}."
        )
    _tell(switch, waiting, name, key, text, as_json)


@app.command()
def release(
    group: GroupArgument,
    key: KeyArgument,
    who: WhoOption = None,
    why: WhyOption = "",
    broker: BrokerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let records of a key go that wait behind a failed one: they run without waiting for it, so order is given up for them.

    Exit code 1: nothing of this key waits.

    Example: pipeline keys release billing run-7
    """
    from pipeline.inspect.control import write_switch
    from pipeline.model.control import Release

    name, switch = real(group), None
    with open_cluster(broker) as cluster:
        waiting = _waiting(cluster, name, key)
        if waiting:
            last = waiting[-1]
            who = who or whoami()
            switch = Release(name, last.topic, last.partition, last.key, last.origin_offset, who, why, now_ms())
            write_switch(cluster, control_topic(), switch, on=True)
    text = f"Released {len(waiting)} waiting records of key {clean(key)} in group {clean(name)}."
    _tell(switch, waiting, name, key, text, as_json)
