"""How commands reach what they work on: the cluster, an application by MODULE:APP, and the names of topics."""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.model.topics import CONTROL_TOPIC

if TYPE_CHECKING:
    from pipeline.app import Pipeline
    from pipeline.codec import AvroCodec
    from pipeline.model.cluster import Cluster, ClusterAdmin
    from pipeline.settings import Settings

BrokerOption = Annotated[
    str | None, typer.Option("--broker", help="Bootstrap address; PIPELINE_BROKER when not given.", metavar="ADDRESS")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
WhoOption = Annotated[str | None, typer.Option("--who", help="Who does this; your login name when not given.")]
WhyOption = Annotated[str, typer.Option("--why", help="Why, for those who find it later.")]


def settings() -> Settings:
    """The settings from the environment, or a `ConfigurationError` naming the one that is wrong."""
    from pipeline.settings import Settings

    return Settings.load()


def quiet_clients() -> None:
    """A command says in one sentence of its own what went wrong: what Kafka's clients say beside it is left out."""
    logging.getLogger("pipeline.kafka.client").setLevel(logging.CRITICAL + 1)


@contextlib.contextmanager
def open_cluster(broker: str | None) -> Iterator[Cluster]:
    """The cluster at `--broker`, else of the settings."""
    from pipeline.app import Pipeline

    quiet_clients()
    yield Pipeline("pipeline-cli", settings=settings(), broker=broker).cluster


@contextlib.contextmanager
def open_admin(cluster: Cluster) -> Iterator[ClusterAdmin]:
    admin = cluster.admin()
    try:
        yield admin
    finally:
        admin.close()


def prefix() -> str:
    """The environment prefix that stands before topics and groups."""
    return settings().prefix


def real(name: str) -> str:
    """A name as declared or as it really is -> as it really is: the environment prefix is added once."""
    head = prefix()
    return name if name.startswith(head) else head + name


def control_topic() -> str:
    return prefix() + CONTROL_TOPIC


def load_app(target: str) -> Pipeline:
    """The application at `MODULE:APP`, as a worker process loads it. Raises `ConfigurationError`."""
    from pipeline.worker.process import load

    return load(target)


def login_name() -> str:
    """Who runs this command, as the operating system knows them."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


def now_ms() -> int:
    return int(time.time() * 1000)


def codec(broker: str | None) -> AvroCodec:
    """Decodes Avro with the registry of the settings: a URL, else the one kept in the cluster."""
    from pipeline.app import Pipeline

    return Pipeline("pipeline-cli", settings=settings(), broker=broker).codec
