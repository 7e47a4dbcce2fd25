"""Quix Streams, for an interpreter that has it: it pins older releases of our own dependencies, so it can't share one with us.

`python -m bench.quix '{"bootstrap": ..., "schema": ..., ...}'` prints its result as JSON; needs quixstreams and fastavro alone.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import uuid
from io import BytesIO
from typing import Any

import fastavro

from bench.meter import Meter


def main() -> None:
    from quixstreams import Application  # type: ignore[import-not-found]

    job = json.loads(sys.argv[1])
    records, node = job["records"], fastavro.parse_schema(json.loads(job["schema"]))

    def finished() -> None:
        print(json.dumps(meter.result()), flush=True)
        os._exit(0)

    meter = Meter(records, finished)

    def handle(value: Any) -> None:
        body = BytesIO(value)
        body.seek(5)
        fastavro.schemaless_reader(body, node)
        meter.tick()

    app = Application(
        broker_address=job["bootstrap"],
        consumer_group=f"peer-{uuid.uuid4().hex[:8]}",
        auto_offset_reset="earliest",
        commit_interval=0.5,
        auto_create_topics=False,
        loglevel="ERROR",
        state_dir=tempfile.mkdtemp(prefix="bench-quix-"),
    )
    app.dataframe(app.topic(job["topic"], value_deserializer="bytes", key_deserializer="bytes")).update(handle)
    app.run()


if __name__ == "__main__":
    main()
