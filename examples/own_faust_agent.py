"""Your own Faust agent on the run events: it reports every model call that sent more than 1,000 tokens.

Run it with `python examples/own_faust_agent.py worker`; PIPELINE_BROKER says where Kafka is.
"""

import os

from pipeline.model.events import ModelCall, RunEvent
from pipeline.views import HoldingApp, avro_topic

PREFIX = os.environ.get("PIPELINE_PREFIX", "")
BROKER = os.environ.get("PIPELINE_BROKER", "localhost:9092")

app = HoldingApp(f"{PREFIX}large-calls", broker=f"kafka://{BROKER}", web_enabled=False, topic_disable_leader=True)
events = avro_topic(app, f"{PREFIX}agent.run.events")
large_calls = app.topic(f"{PREFIX}large.calls", partitions=1, value_serializer="json")


async def report(event: RunEvent) -> None:
    """Called once per event, typed; what it raises on becomes a dead letter in `<topic>.<app id>.dlq`."""
    if isinstance(event, ModelCall) and event.input_tokens > 1_000:
        await large_calls.send(key=event.run_id, value={"model": event.model, "tokens": event.input_tokens})


@app.agent(events.topic)
async def watch(stream) -> None:
    await large_calls.declare()  # Faust makes the topics it reads, not those it only writes
    await events.each(stream, report)


if __name__ == "__main__":
    app.main()
