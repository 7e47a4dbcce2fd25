"""One views process: `python -m pipeline.views.worker` reads its policy as one line of JSON from standard input.

The line stays open: when whoever started it goes away, even killed, standard input ends and the worker stops cleanly.
Exit codes: 0 stopped on request, 2 configuration, 3 Kafka or registry unreachable, 1 anything else (start it again).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.model.errors import ClusterUnavailable, ConfigurationError, PipelineError, SchemaUnavailable
from pipeline.views.policy import ViewsPolicy

if TYPE_CHECKING:
    from pipeline.codec.avro import AvroCodec

log = logging.getLogger(__name__)


def make_codec(policy: ViewsPolicy) -> AvroCodec:
    """The codec, its contracts looked up for the three topics. Raises SchemaUnavailable or ConfigurationError."""
    from pipeline.views.registry import open_codec

    codec = open_codec(policy.bootstrap, policy.registry)
    topics = policy.topics
    codec.prepare(topics.source)
    for topic, record in ((topics.summaries, "agent.run.RunSummary"), (topics.rates, "agent.run.RunRate")):
        if codec.prepare(topic, [record]):
            raise ConfigurationError(
                f"{record} is not registered for topic {topic}: run `pipeline schemas register {topic} --record {record}`."
            )
    return codec


def stop_with_parent() -> None:
    """SIGTERM to ourselves when standard input ends."""

    def watch() -> None:
        while os.read(0, 4_096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def run(policy: ViewsPolicy) -> None:
    """Prepare topics and codec, then hand the process to Faust's worker. Does not return."""
    from pipeline.views import topology

    partitions = topology.ensure(policy)
    codec = make_codec(policy)
    from pipeline.views.app import Views, build_worker
    from pipeline.views.health import serve

    with tempfile.TemporaryDirectory(prefix="pipeline-views-") as scratch:
        # Faust makes a folder in the working directory when it is given none, also for tables in memory.
        views = Views(replace(policy, data_dir=policy.data_dir or scratch), codec, partitions)
        serve(views)
        build_worker(views.app).execute_from_commandline()


def main() -> int:
    """Read the policy, run, and say in one sentence what went wrong."""
    policy = ViewsPolicy.from_json(_first_line())
    stop_with_parent()
    try:
        run(policy)
    except PipelineError as problem:
        sys.stderr.write(f"views: {problem}\n")
        if isinstance(problem, ConfigurationError):
            return 2
        return 3 if isinstance(problem, (ClusterUnavailable, SchemaUnavailable)) else 1
    return 0


def _first_line() -> str:
    """One line read byte by byte, so that nothing of standard input is buffered away from the watcher."""
    out = bytearray()
    while (byte := os.read(0, 1)) not in (b"\n", b""):
        out += byte
    return out.decode()


if __name__ == "__main__":
    sys.exit(main())
