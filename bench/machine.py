"""Where a run took place: what makes its figures comparable, and nothing that names the machine."""

from __future__ import annotations

import os
import platform
from typing import Any

import confluent_kafka

from pipeline.kafka.embedded.relock import KAFKA


def described(own_broker: bool) -> dict[str, Any]:
    """`load` is the average number of running processes in the minute before: far above zero, the figures were disturbed."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_gb": round(memory / 2**30),
        "python": platform.python_version(),
        "kafka": f"{KAFKA[0].rpartition(':')[2]}, one embedded node" if own_broker else "a cluster of its own",
        "librdkafka": confluent_kafka.libversion()[0],
        "load": round(os.getloadavg()[0], 1),
    }


def sentence(machine: dict[str, Any]) -> str:
    disturbed = (
        ", so other work was running and the figures are disturbed" if machine["load"] > machine["cores"] else ""
    )
    return (
        f"{machine['system']}, {machine['cores']} cores, {machine['memory_gb']} GB, Python {machine['python']}, "
        f"Kafka {machine['kafka']}, librdkafka {machine['librdkafka']}; load {machine['load']} before the start{disturbed}"
    )
