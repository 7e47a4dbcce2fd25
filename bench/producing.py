"""Producing: typed events with headers and delivery reports, through our publisher and through a bare confluent-kafka loop."""

from __future__ import annotations

import time
from io import BytesIO
from typing import Any

from fastavro import schemaless_writer

from bench.events import application, events, raw_producer, schema
from pipeline.model.headers import EVENT_ID

CHUNK = 1_000


def _result(records: int, began: tuple[float, float]) -> dict[str, Any]:
    wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
    return {"rate": records / wall, "cpu_us": cpu / records * 1e6, "records": records}


def bare(bootstrap: str, topic: str, records: int) -> dict[str, Any]:
    """fastavro, produce with headers and a report per record, poll; the same producer settings as ours."""
    node, prefix = schema(), b"\x00\x00\x00\x00\x01"
    fields = [dict(event) for event in events(records)]
    producer, delivered = raw_producer(bootstrap), [0]

    def report(error: Any, _message: Any) -> None:
        if error is not None:
            raise RuntimeError(str(error))
        delivered[0] += 1

    began = (time.perf_counter(), time.process_time())
    for each in fields:
        body = BytesIO()
        body.write(prefix)
        schemaless_writer(body, node, each)
        headers = [(EVENT_ID, each["event_id"].encode())]
        while True:
            try:
                producer.produce(topic, body.getvalue(), each["run_id"].encode(), headers=headers, on_delivery=report)
                break
            except BufferError:
                producer.poll(0.01)
        producer.poll(0)
    producer.flush(60)
    if delivered[0] != records:
        raise RuntimeError(f"{delivered[0]} of {records} records were acknowledged")
    return _result(records, began)


def ours(bootstrap: str, topic: str, records: int, many: bool = False) -> dict[str, Any]:
    """`publish` one by one, or `publish_many` in chunks; ends when everything is acknowledged."""
    app = application(bootstrap)
    app.codec.prepare(topic)
    made = list(events(records))
    publisher = app.publisher(topic=topic)
    publisher.publish(made[0])
    publisher.flush(30)
    began = (time.perf_counter(), time.process_time())
    if many:
        for start in range(0, records, CHUNK):
            publisher.publish_many(made[start : start + CHUNK])
    else:
        for event in made:
            publisher.publish(event)
    publisher.flush(60)
    result = _result(records, began)
    stats = publisher.stats()
    publisher.close()
    if stats.delivered != records + 1:
        raise RuntimeError(f"{stats.delivered} of {records + 1} records were acknowledged")
    return result
