"""Events whose schema ids are not known yet: kept as JSON, in memory or in the spool, until the registry has answered.

Nobody waits for it: a thread of its own looks the ids of a topic up, again and again until they are known. A contract
that is not registered is one more that is not known yet: an agent may be deployed before it is registered.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from pipeline.emit.buffer import Outgoing
from pipeline.model.cluster import Headers
from pipeline.model.errors import ClusterError, CodecError, EncodeError, PipelineError
from pipeline.model.events import EVENT_TYPES, RunEvent

log = logging.getLogger("pipeline.emit")

AGAIN_S, FIRST_LOOK_UP_S = 1.0, 5.0

Prepare = Callable[[str], object]
"""Topic -> the record names that the registry lacks (or nothing). May wait; raises a ClusterError or CodecError."""


class EventEncoder(Protocol):
    """What turns an event into bytes: `pipeline.codec.AvroCodec`. Never blocks; raises EncodeError."""

    def encode(self, value: RunEvent, *, topic: str) -> bytes: ...


class SchemaWait:
    """Encodes at once where the event's id is known, else later. `trouble`: why they are not, one sentence or ""."""

    def __init__(self, encoder: EventEncoder, prepare: Prepare | None) -> None:
        self.trouble = ""
        self._encoder = encoder
        self._prepare = prepare
        self._known: dict[str, frozenset[str]] = {}  # topic -> record names that are not registered
        self._again_at: dict[str, float] = {}
        self._thread: threading.Thread | None = None
        self._began = 0.0
        self._closed = False

    def record(self, event: RunEvent, topic: str, headers: Headers) -> Outgoing:
        """The event on its way, encoded if that is possible yet. Raises EncodeError."""
        key = event.run_id.encode()
        missing = self._known.get(topic)
        if self._prepare is None or (missing is not None and event.record_name not in missing):
            return Outgoing(topic, key, self._encoder.encode(event, topic=topic), headers)
        made = Outgoing(topic, key, as_json(event), headers)
        made.unencoded = event.record_name
        return made

    def encode(self, record: Outgoing) -> bool:
        """Encode what was kept as JSON. False: not yet, ask again later.

        Raises ClusterError when it never can be: it is no event of this build, or does not fit its contract.
        """
        missing = self._known.get(record.topic, frozenset()) if self._prepare is None else self._known.get(record.topic)
        if missing is None or record.unencoded in missing:
            self.look_up(record.topic)
            return False
        try:
            event = from_json(record.unencoded or "", record.value or b"")
            record.value = self._encoder.encode(event, topic=record.topic)
        except CodecError as error:
            raise ClusterError(str(error)) from error
        record.unencoded = None
        return True

    def look_up(self, topic: str) -> None:
        """See that the topic's ids are being looked up; returns at once."""
        if self._prepare is None or self._closed or (self._thread is not None and self._thread.is_alive()):
            return
        if time.monotonic() < self._again_at.get(topic, 0.0):
            return
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run, args=(topic,), name="pipeline-schema-ids", daemon=True)
        self._thread.start()

    def first_look_up(self) -> bool:
        """Whether one that may well succeed is under way, or has just succeeded: it is young, and none has failed."""
        return self._thread is not None and not self.trouble and time.monotonic() - self._began < FIRST_LOOK_UP_S

    def close(self) -> None:
        """Start no look-up any more. One under way ends by its own deadline; what it finds is of no use."""
        self._closed = True

    def _run(self, topic: str) -> None:
        assert self._prepare is not None
        trouble = ""
        try:
            found = self._prepare(topic)
            missing = frozenset(found) if isinstance(found, (list, tuple, set, frozenset)) else frozenset()
            if missing:
                trouble = (
                    f"{', '.join(sorted(missing))} not registered for topic {topic}: run `pipeline schemas register`"
                )
            self._known[topic] = missing
        except PipelineError as error:
            trouble = str(error)
        except Exception as error:  # nothing may end this wait: it is asked again, and somebody must know why
            log.exception("looking up the schema ids of topic %s failed unexpectedly", topic)
            trouble = f"{type(error).__name__}: {error}"
        self._again_at[topic] = time.monotonic() + AGAIN_S
        if trouble != self.trouble and trouble and not self._closed:
            log.warning("events for topic %s wait, since their schema ids can't be looked up yet: %s", topic, trouble)
        self.trouble = trouble


def as_json(event: RunEvent) -> bytes:
    """The fields of an event. Raises EncodeError for text that is not valid Unicode, or a class that is not ours."""
    if EVENT_TYPES.get(event.record_name) is not type(event):
        raise EncodeError(f"{type(event).__name__} is no run event of this version, so it has no contract.")
    try:
        return json.dumps(event.model_dump(), ensure_ascii=False, separators=(",", ":")).encode()
    except (UnicodeEncodeError, TypeError, ValueError) as error:
        raise EncodeError(f"{event.record_name} {event.event_id!a} can't be written: {error}.") from error


def from_json(record_name: str, data: bytes) -> RunEvent:
    """The event again; fields that this version does not know are left out. Raises EncodeError."""
    known = EVENT_TYPES.get(record_name)
    if known is None:
        raise EncodeError(f"{record_name} is no run event of this version: a newer one spooled it.")
    try:
        return known.read(json.loads(data))
    except ValueError as error:
        raise EncodeError(f"{record_name} from the spool can't be read: {error}.") from error
