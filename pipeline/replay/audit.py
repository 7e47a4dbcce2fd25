"""The audit: who did what and why, acknowledged before the first effect of an action. Without its topic there is no action."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.inspect.appending import ACK_TIMEOUT_S, Entry, append
from pipeline.inspect.scan import read_to_end
from pipeline.model.cluster import Cluster, TopicPartition

VERSION = 1
BODY_BYTES_MAX = 500_000
"""A plan larger than this is not copied into its entry: the hash stands for it."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One entry. `counts` says how much the action was expected to touch, `command` how it was started."""

    at_ms: int
    who: str
    why: str
    action: str
    plan: str = ""
    plan_hash: str = ""
    target: str = ""
    counts: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    plan_body: Mapping[str, Any] | None = None


class AuditRecordError(ValueError):
    """A record of the audit topic is not readable."""


def encode(entry: AuditEntry) -> bytes:
    """The JSON of an entry; a plan that is too large is left out."""
    found: dict[str, Any] = {
        "v": VERSION,
        "at_ms": entry.at_ms,
        "who": entry.who,
        "why": entry.why,
        "action": entry.action,
        "plan": entry.plan,
        "plan_hash": entry.plan_hash,
        "target": entry.target,
        "counts": dict(entry.counts),
        "command": entry.command,
    }
    plain = json.dumps(found, sort_keys=True).encode()
    if entry.plan_body is None:
        return plain
    full = json.dumps({**found, "plan_body": dict(entry.plan_body)}, sort_keys=True).encode()
    return full if len(full) <= BODY_BYTES_MAX else plain


def decode(value: bytes | None) -> AuditEntry:
    """The entry in a record's value. Raises `AuditRecordError`."""
    try:
        found = json.loads(value or b"")
        texts = {name: str(found.get(name, "")) for name in ("who", "why", "plan", "plan_hash", "target", "command")}
        body = found.get("plan_body")
        return AuditEntry(
            at_ms=int(found["at_ms"]),
            action=str(found["action"]),
            counts=dict(found.get("counts") or {}),
            plan_body=body if isinstance(body, dict) else None,
            **texts,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AuditRecordError(f"a record of the audit topic is not readable: {error}") from None


def write_audit(cluster: Cluster, topic: str, entry: AuditEntry, timeout_s: float = ACK_TIMEOUT_S) -> int:
    """Write the entry to the audit topic (real name) and wait for the acknowledgement; its offset.

    Raises `TopologyError` when the topic is missing, `ClusterUnavailable` when nothing answered: then nothing may be done.
    """
    key = entry.plan.encode() or None
    return append(cluster, topic, [Entry(key, encode(entry), partition=0)], timeout_s)[0]


def read_audit(cluster: Cluster, topic: str, plan: str = "") -> Iterator[tuple[int, AuditEntry]]:
    """(offset, entry) in order: all, or those of one plan. Nothing when the topic is missing; unreadable records are passed over."""
    admin = cluster.admin()
    try:
        if not admin.topics([topic]):
            return
        place = TopicPartition(topic, 0)
        starts, ends = admin.beginning_offsets([place]), admin.end_offsets([place])
    finally:
        admin.close()
    for message in read_to_end(cluster, starts, ends):
        if plan and message.key() != plan.encode():
            continue
        try:
            yield message.offset(), decode(message.value())
        except AuditRecordError:
            continue
