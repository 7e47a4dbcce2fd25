"""How commands reach what they work on: the cluster, an application by MODULE:APP, and the names of topics."""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import socket
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.model.errors import ConfigurationError
from pipeline.model.topics import AUDIT_TOPIC, CONTROL_TOPIC

if TYPE_CHECKING:
    from pipeline.app import Pipeline
    from pipeline.codec import AvroCodec
    from pipeline.model.cluster import Cluster, ClusterAdmin
    from pipeline.settings import Settings

GroupArgument = Annotated[str, typer.Argument(help="The consumer group.", metavar="GROUP")]
BrokerOption = Annotated[
    str | None, typer.Option("--broker", help="Bootstrap address; PIPELINE_BROKER when not given.", metavar="ADDRESS")
]
DeadLettersOption = Annotated[
    str | None,
    typer.Option("--dead-letters", help="Topic of its dead letters, where it is not TOPIC.GROUP.dlq.", metavar="TOPIC"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
WhoOption = Annotated[str | None, typer.Option("--who", help="Who does this; you at this host when not given.")]
WhyOption = Annotated[str, typer.Option("--why", help="Why, for those who find it later.")]
ReasonOption = Annotated[
    str, typer.Option("--reason", "--why", help="Why, for those who read the audit later; asked for on a terminal.")
]


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


def known_topic(admin: ClusterAdmin, topic: str) -> str:
    """A topic's real name: as given, or else with the environment prefix."""
    return next((name for name in (topic, real(topic)) if admin.topics([name])), topic)


def control_topic() -> str:
    return prefix() + CONTROL_TOPIC


def audit_topic() -> str:
    return prefix() + AUDIT_TOPIC


def required_reason(reason: str) -> str:
    """The reason given, or asked for on a terminal. Raises `ConfigurationError` when there is none: what is done is written down."""
    found = reason.strip()
    if not found and sys.stdin.isatty():
        found = typer.prompt("Why (for the audit)").strip()
    if not found:
        raise ConfigurationError("--reason is needed: say why, for those who read the audit later")
    return found


def load_app(target: str) -> Pipeline:
    """The application at `MODULE:APP`, as a worker process loads it. Raises `ConfigurationError`."""
    from pipeline.worker.process import load

    return load(target)


def whoami() -> str:
    """`user@host` of this process."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = f"uid{os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def now_ms() -> int:
    return int(time.time() * 1000)


def codec(broker: str | None) -> AvroCodec:
    """Decodes Avro with the registry of the settings: a URL, else the one kept in the cluster."""
    from pipeline.app import Pipeline

    return Pipeline("pipeline-cli", settings=settings(), broker=broker).codec
