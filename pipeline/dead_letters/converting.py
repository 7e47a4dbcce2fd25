"""Converting dead letters to manual tasks: a record on the tasks topic says who should do what, with all that is known.

{"v":1, "task": id, "at_ms", "by", "why", "to": who should do it, "what": the instruction, "group", "dead_letter": {...}}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from pipeline.dead_letters.acting import Actor, Done, begin, record, still
from pipeline.dead_letters.desk import Desk
from pipeline.dead_letters.details import details
from pipeline.dead_letters.exporting import plain_of
from pipeline.dead_letters.states import id_of
from pipeline.inspect.appending import Entry, append, require_topic
from pipeline.model.cluster import Message

TASK_VERSION = 1
CONVERT_MAX = 1_000
"""People do these by hand."""
LETTER_BYTES_MAX = 800_000
"""Kafka takes records of a mebibyte by default; as JSON a value can be several times as large."""


def task_id_of(message: Message) -> str:
    """The same whenever it is filed: one that was killed before its results were written files it again, and that is recognised."""
    place = f"{message.topic()}/{message.partition()}/{message.offset()}/{message.timestamp()[1]}"
    return f"task-{hashlib.sha256(place.encode()).hexdigest()[:12]}"


def convert(desk: Desk, numbers: Sequence[int], actor: Actor, assignee: str, instruction: str, now_ms: int) -> Done:
    """File a task for each (values scrubbed). `details["tasks"]`: their ids. Raises `TopologyError` when the tasks topic is missing."""
    chosen, left = still(desk, numbers, ("open", "cancelled"))
    if len(chosen) > CONVERT_MAX:
        left["beyond the first 1000"] = len(chosen) - CONVERT_MAX
        chosen = chosen[:CONVERT_MAX]
    if not chosen:
        return Done("", "convert", {"converted": 0}, left)
    require_topic(desk.cluster, desk.topics.tasks)
    action_id = begin(desk, actor, "convert", chosen, now_ms, to=assignee)
    made: list[tuple[int, str, bytes]] = []
    for message in desk.fetch(chosen):
        number = id_of(message.partition(), message.offset())
        task_id = task_id_of(message)
        found = plain_of(details(desk, message))
        if len(json.dumps(found, default=str)) > LETTER_BYTES_MAX:
            place = f"pipeline dlq show {found['position']} --topic {desk.topics.dead_letters}"
            found |= {"value": None, "headers": {}, "problem": f"the value is too large for a task: `{place}` shows it"}
        task: dict[str, Any] = {
            "v": TASK_VERSION, "task": task_id, "at_ms": now_ms, "by": actor.who, "why": actor.why, "to": assignee,
            "what": instruction, "action": action_id, "topic": desk.topics.dead_letters,
            "dead_letter": found,
        }  # fmt: skip
        made.append((number, task_id, json.dumps(task, default=str).encode()))
    offsets = append(
        desk.cluster, desk.topics.tasks, [Entry(task_id.encode(), value, partition=0) for _, task_id, value in made]
    )
    results = {number: ("converted", 0, offset) for (number, _, _), offset in zip(made, offsets, strict=True)}
    record(desk, actor, action_id, "convert", results, now_ms)
    desk.refresh()
    if len(made) < len(chosen):
        left["not there any more"] = len(chosen) - len(made)
    return Done(action_id, "convert", {"converted": len(made)}, left, {"tasks": [task_id for _, task_id, _ in made]})
