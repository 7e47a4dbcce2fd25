"""A replay plan: what is read, which of it is chosen, and where it goes. A frozen value; its hash leaves out the preview.

Offsets are frozen while planning: a plan never means more records tomorrow than it did today.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.model.errors import ConfigurationError

VERSION = 1
REPLAYS_MAX = 5
"""How often one record may be replayed, unless the plan says otherwise: a loop of replays ends here."""

SourceKind = Literal["topic", "dead_letters", "file"]
TargetKind = Literal["lane", "topic", "file"]


class PlanError(ConfigurationError):
    """A plan that can't be read, was changed by hand, or no longer fits the cluster."""


@dataclass(frozen=True, slots=True)
class Span:
    """Offsets of one partition: `[start, end)`, and where the partition began when the plan was made. `last_ms`: the timestamp of the
    record before `end`, by which a topic that was made anew is known; -1: none, or not looked at."""

    start: int
    end: int
    beginning: int = 0
    last_ms: int = -1

    @property
    def size(self) -> int:
        return max(0, self.end - self.start)


@dataclass(frozen=True, slots=True)
class Source:
    """What is read. `topic` is a real name; for a file it is its path, and the one span counts its records."""

    kind: SourceKind
    topic: str
    partitions: int
    spans: Mapping[int, Span]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which records of the spans; empty fields choose all. Times are milliseconds: from_ms <= timestamp < to_ms.

    `positions`: offsets by partition, in ascending order; None: not chosen by position.
    """

    keys: tuple[bytes, ...] = ()
    types: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()
    from_ms: int | None = None
    to_ms: int | None = None
    where: str = ""
    positions: Mapping[int, tuple[int, ...]] | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """Where to. `topics`: source topic -> the topic its records are written to (a replay lane, or any topic); "" = every other.

    `file`: path of the container file. `group` is the one that asked, by its real name.
    """

    kind: TargetKind
    group: str = ""
    topics: Mapping[str, str] = field(default_factory=dict)
    file: str = ""

    def topic_for(self, source_topic: str) -> str | None:
        return self.topics.get(source_topic) or self.topics.get("")

    @property
    def text(self) -> str:
        """For people and the audit."""
        if self.kind == "file":
            return f"file {self.file}"
        names = ", ".join(sorted(set(self.topics.values())))
        return f"group {self.group} ({names})" if self.kind == "lane" else f"topic {names}"


@dataclass(frozen=True, slots=True)
class Fork:
    """Events go out as those of a new run; their ids are made of the old ones and the plan's id."""

    run_id: str


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """See the module. `rate`: records per second by all processes together, 0 = as fast as it goes.

    `last`: by partition, offsets of keys whose records lie in another order than their origins: sent after all others, in this
    order. `to_step` is kept for people: the spans end before the first event of a later step.
    """

    plan_id: str
    created_ms: int
    who: str
    source: Source
    select: Selection
    target: Target
    fork: Fork | None = None
    to_step: int | None = None
    replays_max: int = REPLAYS_MAX
    rate: float = 0.0
    last: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    preview: Mapping[str, Any] | None = None

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of everything but the preview."""
        return hashlib.sha256(_canonical(_body(self))).hexdigest()

    @property
    def of_file(self) -> bool:
        """To or from a file: one process does it, and it has no commits; its results alone say how far it is."""
        return "file" in (self.target.kind, self.source.kind)

    @property
    def offsets(self) -> int:
        """How many offsets the spans hold: at most so many records are looked at."""
        return sum(span.size for span in self.source.spans.values())


def new_plan_id() -> str:
    return f"rp-{secrets.token_hex(6)}"


def _canonical(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def _key_json(key: bytes) -> dict[str, str]:
    try:
        return {"key": key.decode()}
    except UnicodeDecodeError:
        return {"key_hex": key.hex()}


def _numbers(by_partition: Mapping[int, tuple[int, ...]]) -> dict[str, list[int]]:
    return {str(partition): list(offsets) for partition, offsets in by_partition.items()}


def _body(plan: ReplayPlan) -> dict[str, Any]:
    source, select, target = plan.source, plan.select, plan.target
    return {
        "version": VERSION,
        "plan_id": plan.plan_id,
        "created_ms": plan.created_ms,
        "who": plan.who,
        "source": {
            "kind": source.kind,
            "topic": source.topic,
            "partitions": source.partitions,
            "spans": {str(p): [span.start, span.end, span.beginning, span.last_ms] for p, span in source.spans.items()},
        },
        "select": {
            "keys": [_key_json(key) for key in select.keys],
            "types": list(select.types),
            "tenants": list(select.tenants),
            "from_ms": select.from_ms,
            "to_ms": select.to_ms,
            "where": select.where,
            "positions": None if select.positions is None else _numbers(select.positions),
        },
        "target": {
            "kind": target.kind,
            "group": target.group,
            "topics": dict(target.topics),
            "file": target.file,
        },
        "fork": None if plan.fork is None else {"run_id": plan.fork.run_id},
        "to_step": plan.to_step,
        "replays_max": plan.replays_max,
        "rate": plan.rate,
        "last": _numbers(plan.last),
    }


def as_json(plan: ReplayPlan) -> dict[str, Any]:
    """The plan as a JSON object: its body, `hash`, and `preview` where it has one."""
    found = {**_body(plan), "hash": plan.hash}
    if plan.preview is not None:
        found["preview"] = dict(plan.preview)
    return found


def to_text(plan: ReplayPlan) -> str:
    """The plan's file."""
    return json.dumps(as_json(plan), sort_keys=True, indent=1) + "\n"


def from_text(text: str | bytes, name: str = "the plan") -> ReplayPlan:
    """Read a plan's file. Raises `PlanError` naming what is wrong; a body that does not fit its hash was changed by hand."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{name} is not JSON ({error}): make a plan with `pipeline replay plan`") from None
    if not isinstance(found, dict) or "plan_id" not in found:
        raise PlanError(f"{name} is not a replay plan: make one with `pipeline replay plan`")
    return from_json(found, name)


def from_json(found: Mapping[str, Any], name: str = "the plan") -> ReplayPlan:
    """The plan of a JSON object made by `as_json`. Raises `PlanError`."""
    if found.get("version") != VERSION:
        raise PlanError(f"{name} has version {found.get('version')!r}, this build reads {VERSION}: make it anew")
    try:
        plan = _parse(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PlanError(f"{name} is not complete ({type(error).__name__}: {error}): make it anew") from None
    if plan.hash != found.get("hash"):
        raise PlanError(f"{name} was changed after it was made (its hash does not fit): make a new one instead")
    return plan


def _offsets(found: Mapping[str, list[int]]) -> dict[int, tuple[int, ...]]:
    return {int(partition): tuple(map(int, offsets)) for partition, offsets in found.items()}


def _parse(found: Mapping[str, Any]) -> ReplayPlan:
    source, select, target, fork = found["source"], found["select"], found["target"], found["fork"]
    positions = select["positions"]
    return ReplayPlan(
        plan_id=str(found["plan_id"]),
        created_ms=int(found["created_ms"]),
        who=str(found["who"]),
        source=Source(
            source["kind"],
            source["topic"],
            int(source["partitions"]),
            {int(p): Span(*map(int, span)) for p, span in source["spans"].items()},
        ),
        select=Selection(
            keys=tuple(k["key"].encode() if "key" in k else bytes.fromhex(k["key_hex"]) for k in select["keys"]),
            types=tuple(select["types"]),
            tenants=tuple(select["tenants"]),
            from_ms=select["from_ms"],
            to_ms=select["to_ms"],
            where=select["where"],
            positions=None if positions is None else _offsets(positions),
        ),
        target=Target(target["kind"], target["group"], dict(target["topics"]), target["file"]),
        fork=None if fork is None else Fork(fork["run_id"]),
        to_step=found["to_step"],
        replays_max=int(found["replays_max"]),
        rate=float(found["rate"]),
        last=_offsets(found["last"]),
        preview=found.get("preview"),
    )
