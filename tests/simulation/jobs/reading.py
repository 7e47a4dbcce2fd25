"""What stands in the topics of a queue, read by its contracts alone: fields as Avro gives them, none of the product's values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.model.errors import CodecError
from tests.simulation.facts import Landed, told
from tests.simulation.jobs.fleet import codec
from tests.simulation.jobs.scenario import DEAD, INBOX, REPLAY, STORE

TERMINAL = {"COMPLETED", "COMPLETED_WITH_WARNING", "FAILED", "CANCELLED", "DEAD_LETTER"}
GOOD = {"COMPLETED", "COMPLETED_WITH_WARNING"}
FAR_MS = 60_000


@dataclass(frozen=True, slots=True)
class Entry:
    """A record of the store. `kind`: "j", "d" or "s"; `what`: the contract's name, "" for a tombstone."""

    partition: int
    offset: int
    epoch: int
    kind: str
    name: str
    what: str
    fields: dict[str, Any] = field(default_factory=dict)
    at_ms: int = 0

    @property
    def state(self) -> str:
        return str(self.fields.get("state", ""))

    @property
    def begun(self) -> bool:
        """Not over, and it has begun before."""
        return self.state in ("RUNNING", "RETRYING") or (self.state == "QUEUED" and bool(self.fields["started_ms"]))

    @property
    def over(self) -> bool:
        """Nothing more is to come of it."""
        return self.what != "JobRecord" or (self.state in TERMINAL and not self.fields["letter_due"])

    def far(self, now_ms: int) -> bool:
        return self.state == "SCHEDULED" and self.fields["next_ms"] > now_ms + FAR_MS

    def __str__(self) -> str:
        told_ = {
            name: self.fields[name]
            for name in ("state", "version", "attempt", "stalls", "number", "ready_ms", "next_ms", "last_ms", "offset", "cancelling",
                         "letter_due", "of", "job_id", "from_ms", "until_ms", "paused")
            if self.fields.get(name)
        }  # fmt: skip
        return f"epoch {self.epoch} {self.kind}/{self.name} {told_ or 'tombstone'}"


def read_entry(fact: Landed) -> Entry:
    _, partition, offset = fact.place
    kind, _, name = (fact.key or b"").decode().partition("/")
    epoch = int(dict(fact.headers)["pl.epoch"] or b"0")
    if fact.value is None:
        return Entry(partition, offset, epoch, kind, name, "", {}, fact.at_ms)
    what, fields = codec().decode_dict(STORE, fact.value)
    return Entry(partition, offset, epoch, kind, name, what.rpartition(".")[2], fields, fact.at_ms)


def described(fact: Landed, start_ms: int) -> str:
    """One line for people."""
    at = f"{(fact.at_ms - start_ms) / 1000:8.3f}  landed   {fact.place[0]}[{fact.place[1]}]@{fact.place[2]} "
    try:
        if fact.place[0] == STORE:
            return at + str(read_entry(fact))
        if fact.place[0] in (INBOX, DEAD, REPLAY):
            what, fields = codec().decode_dict(INBOX, fact.value)
            given = {name: value for name, value in fields.items() if value not in (None, 0, "", [], b"", -1)}
            return f"{at}{what.rpartition('.')[2]} {given}"
    except CodecError:
        pass
    return told(fact, start_ms)
