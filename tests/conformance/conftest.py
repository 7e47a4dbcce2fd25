"""The same tests over the simulated cluster and over real Kafka, there with both group protocols."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest

from pipeline import Pipeline, Settings
from pipeline.background import KafkaQueue
from pipeline.topology import Defaults
from tests.conformance.sides import KafkaSide, MemorySide, Side
from tests.topics import forget_topics


def _side(request: pytest.FixtureRequest, which: str) -> Side:
    kind, _, protocol = which.partition("-")
    if kind == "memory":
        return MemorySide(f"conformance-{uuid.uuid4().hex}")
    return KafkaSide(request.getfixturevalue("kafka"), protocol or "classic")


@pytest.fixture(params=["memory", "kafka"])
def side(request: pytest.FixtureRequest) -> Iterator[Side]:
    """A cluster, for what has nothing to do with groups."""
    made = _side(request, request.param)
    yield made
    made.close()


@pytest.fixture(params=["memory", "kafka-classic", "kafka-consumer"])
def grouped(request: pytest.FixtureRequest) -> Iterator[Side]:
    """A cluster and a group protocol."""
    made = _side(request, request.param)
    yield made
    made.close()


def kafka_queue(request: pytest.FixtureRequest, kind: str, name: str) -> Callable[[], KafkaQueue]:
    """Makes queues of background jobs that share their topics: on a memory cluster ("kafka-in-memory") or on the real one ("kafka")."""
    broker = request.getfixturevalue("kafka") if kind == "kafka" else f"memory://{uuid.uuid4().hex}"
    settings = Settings(broker=broker, prefix=f"{uuid.uuid4().hex[:8]}.", session_timeout_s=6.0)
    request.addfinalizer(lambda: forget_topics(broker, settings.prefix))
    return lambda: KafkaQueue(Pipeline(name, settings=settings), create=Defaults(partitions=2))


@pytest.fixture(params=["memory", "kafka"])
def broker(request: pytest.FixtureRequest) -> str:
    """The address of a cluster."""
    return f"memory://{uuid.uuid4().hex}" if request.param == "memory" else str(request.getfixturevalue("kafka"))


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> Iterator[str]:
    """An environment of the test's own."""
    name = f"t{uuid.uuid4().hex[:8]}."
    broker = request.getfixturevalue("broker") if "broker" in request.fixturenames else ""
    yield name
    if broker:
        forget_topics(broker, name)
