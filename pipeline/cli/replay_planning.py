"""`pipeline replay plan`: what somebody asks for on the command line as a request, and the plan in a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.access import (
    BrokerOption,
    JsonOption,
    WhoOption,
    codec,
    now_ms,
    open_cluster,
    prefix,
    real,
    settings,
    whoami,
)
from pipeline.cli.bars import bar
from pipeline.cli.output import clean, emit_json, line
from pipeline.cli.stopping import telling_when_interrupted
from pipeline.model.errors import ConfigurationError
from pipeline.model.keys import typed_key

if TYPE_CHECKING:
    from pipeline.replay.asking import Request
    from pipeline.replay.plan import Selection

_Topic = Annotated[str, typer.Option("--topic", help="A source topic, or dead letters.", metavar="TOPIC")]
_FromFile = Annotated[Path | None, typer.Option("--from-file", help="Records of a container file, instead of --topic.")]
_Group = Annotated[str, typer.Option("--group", help="Into this group's replay lane: only it processes them again.")]
_ToTopic = Annotated[str, typer.Option("--to-topic", help="To a topic of the declared topology.")]
_ToFile = Annotated[str, typer.Option("--to-file", help="To an Avro container file.")]
_FromOffset = Annotated[
    list[str] | None,
    typer.Option("--from-offset", help="P:O, partition P from offset O; repeatable. Others are left out."),
]
_FromTime = Annotated[str | None, typer.Option("--from-time", help="From then on; UTC without a zone.", metavar="ISO")]
_ToTime = Annotated[str | None, typer.Option("--to-time", help="Before then.", metavar="ISO")]
_Last = Annotated[str | None, typer.Option("--last", help="From so long ago, for example 2h.", metavar="AGE")]
_Key = Annotated[list[str] | None, typer.Option("--key", help="Only this key; repeatable.")]
_Type = Annotated[list[str] | None, typer.Option("--type", help="Only this event type; repeatable.")]
_Tenant = Annotated[list[str] | None, typer.Option("--tenant", help="Only this tenant; repeatable.")]
_Where = Annotated[
    str, typer.Option("--where", help="A filter, such as 'error.class == \"RateLimit\" and attempt >= 3'.")
]
_Limit = Annotated[int, typer.Option("--limit", min=0, help="At most so many records, the oldest.")]
_Rate = Annotated[
    float, typer.Option("--rate", min=0, help="Records per second by all processes; 0: as fast as it goes.")
]
_ReplaysMax = Annotated[int, typer.Option("--replays-max", min=1, help="Leave out what was replayed so often already.")]
_Fork = Annotated[
    str, typer.Option("--fork-run", help="Write the run of --key again as this new run.", metavar="NEW_ID")
]
_ToStep = Annotated[int | None, typer.Option("--to-step", min=0, help="Only up to this step of the run of --key.")]
_App = Annotated[
    str | None, typer.Option("--app", help="MODULE:APP whose topics may be targets.", metavar="MODULE:APP")
]
_Decode = Annotated[str, typer.Option("--decode", help="Values in the preview: some, or none.")]
_Out = Annotated[Path | None, typer.Option("--out", "-o", help="Where to write the plan; PLAN-ID.json when not given.")]


def plan_command(
    topic: _Topic = "",
    from_file: _FromFile = None,
    group: _Group = "",
    to_topic: _ToTopic = "",
    to_file: _ToFile = "",
    from_offset: _FromOffset = None,
    from_time: _FromTime = None,
    to_time: _ToTime = None,
    last: _Last = None,
    key: _Key = None,
    kind: _Type = None,
    tenant: _Tenant = None,
    where: _Where = "",
    limit: _Limit = 0,
    rate: _Rate = 0.0,
    replays_max: _ReplaysMax = 5,
    fork_run: _Fork = "",
    to_step: _ToStep = None,
    declared: _App = None,
    decode: _Decode = "some",
    out: _Out = None,
    who: WhoOption = None,
    broker: BrokerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read what is there and write a plan with its preview. Nothing is sent.

    Offsets are frozen: the plan means the same records whenever it runs. Exit code 1: nothing was chosen.

    \b
    Example: pipeline replay plan --topic agent.run.events --group billing \\
      --type ToolCall --last 2h
    """
    from pipeline.replay.asking import Request
    from pipeline.replay.plan import Fork

    if bool(topic) == (from_file is not None):
        raise ConfigurationError("say what to replay: --topic TOPIC or --from-file FILE, one of them")
    now = now_ms()
    request = Request(
        topic=str(from_file) if from_file is not None else real(topic),
        who=who or whoami(),
        group=real(group) if group else "",
        to_topic=real(to_topic) if to_topic else "",
        to_file=to_file,
        kind="file" if from_file is not None else None,
        select=_selection(key, kind, tenant, where, _times(from_time, to_time, last, now)),
        from_offsets=_offsets(from_offset or []),
        limit=limit,
        fork=Fork(fork_run) if fork_run else None,
        to_step=to_step,
        replays_max=replays_max,
        rate=rate,
        allowed=_declared(declared),
        decode=decode,
    )
    _make(request, now, out, broker, as_json)


def _make(request: Request, now: int, out: Path | None, broker: str | None, as_json: bool) -> None:
    from pipeline.cli.replay_showing import show_plan
    from pipeline.replay.plan import as_json as plan_json
    from pipeline.replay.plan import to_text
    from pipeline.replay.planning import check_request, make_plan

    check_request(request)
    _check_out(out)
    with (
        telling_when_interrupted("Interrupted: no plan was written and nothing was sent; run the command again."),
        open_cluster(broker) as cluster,
        bar("reading", quiet=as_json) as scanned,
    ):
        plan = make_plan(cluster, request, codec(broker), now, scanned)
    path = out or Path(f"{plan.plan_id}.json")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(to_text(plan))
    except OSError as error:
        raise ConfigurationError(f"--out {path} can't be written, so there is no plan: {error.strerror}") from None
    if as_json:
        emit_json({"file": str(path), **plan_json(plan)})
    else:
        show_plan(plan)
        line(f"The plan is in {clean(path)}. Run it: pipeline replay run {clean(path)} --reason ...", "bold")
    raise typer.Exit(0 if (plan.preview or {}).get("selected") else 1)


def _check_out(out: Path | None) -> None:
    """Before anything is read, which may take long. Raises `ConfigurationError`."""
    from pipeline.replay.files import is_there

    folder = Path() if out is None else out.parent
    name = "the current directory" if out is None else f"--out {out}: the directory {folder}"
    if not os.path.isdir(folder):
        raise ConfigurationError(f"{name} does not exist; make it first, or name another file")
    if out is not None and is_there(out, "--out"):
        raise ConfigurationError(
            f"--out {out} is there already, and no plan is written over: delete it first, or name another file"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigurationError(f"{name} can't be written to; name a file elsewhere with --out")


def _offsets(texts: list[str]) -> dict[int, int]:
    from pipeline.replay.reset import parse_offsets

    everywhere, named = parse_offsets(texts, "--from-offset")
    if everywhere is not None:
        raise ConfigurationError("--from-offset names the partition too: P:O")
    return dict(named)


def _times(from_time: str | None, to_time: str | None, last: str | None, now: int) -> tuple[int | None, int | None]:
    from pipeline.replay.moments import parse_age_ms, parse_moment_ms

    if last is not None and from_time is not None:
        raise ConfigurationError("--last and --from-time exclude each other: say once where to begin")
    start = None if from_time is None else parse_moment_ms(from_time, "--from-time", now)
    if last is not None:
        start = now - parse_age_ms(last, "--last")
    end = None if to_time is None else parse_moment_ms(to_time, "--to-time", now)
    if start is not None and end is not None and end <= start:
        raise ConfigurationError("--to-time is not after --from-time: no record lies between them")
    return start, end


def _selection(
    keys: list[str] | None,
    types: list[str] | None,
    tenants: list[str] | None,
    where: str,
    times: tuple[int | None, int | None],
) -> Selection:
    from pipeline.replay.plan import Selection

    raw = tuple(bytes.fromhex(k[2:]) if k.startswith("0x") and _is_hex(k[2:]) else typed_key(k) for k in keys or ())
    return Selection(raw, tuple(types or ()), tuple(tenants or ()), times[0], times[1], where)


def _is_hex(text: str) -> bool:
    """A key that is no text is written as tables show it: 0x and its bytes."""
    try:
        bytes.fromhex(text).decode()
    except UnicodeDecodeError:
        return True
    except ValueError:
        return False
    return False


def _declared(target: str | None) -> frozenset[str]:
    from pipeline.cli.access import load_app

    found = {prefix() + settings().events_topic}
    if target is not None:
        found |= {entry.topics.source for entry in load_app(target).layouts()}
    return frozenset(found)
