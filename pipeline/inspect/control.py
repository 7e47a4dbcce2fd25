"""Reads and writes the control topic: the switches operators set and workers follow."""

from __future__ import annotations

import contextlib
import threading

from pipeline.inspect.scan import read_to_end
from pipeline.model.cluster import Cluster, TopicPartition
from pipeline.model.control import ControlRecordError, Switch, Switches, encode
from pipeline.model.errors import ClusterError, ClusterUnavailable, TopologyError

ACK_TIMEOUT_S = 15.0


def read_switches(cluster: Cluster, control_topic: str) -> Switches:
    """What is switched on now; nothing when the control topic does not exist. Unreadable records are passed over."""
    admin = cluster.admin()
    switches = Switches()
    try:
        if not admin.topics([control_topic]):
            return switches
        place = TopicPartition(control_topic, 0)
        starts, ends = admin.beginning_offsets([place]), admin.end_offsets([place])
    finally:
        admin.close()
    for message in read_to_end(cluster, starts, ends):
        with contextlib.suppress(ControlRecordError):
            switches.fold(message.key(), message.value())
    return switches


def write_switch(cluster: Cluster, control_topic: str, switch: Switch, on: bool) -> None:
    """Turn it on or off and wait for the acknowledgement.

    Raises `TopologyError` when the control topic is missing, `ClusterUnavailable` when nothing answered in time.
    """
    admin = cluster.admin()
    try:
        if not admin.topics([control_topic]):
            raise TopologyError(
                f"topic {control_topic} does not exist, so no worker would hear of it: run `pipeline topics apply` first"
            )
    finally:
        admin.close()
    answered = threading.Event()
    failures: list[ClusterError] = []

    def delivered(error: ClusterError | None, offset: int) -> None:
        if error is not None:
            failures.append(error)
        answered.set()

    key, value = encode(switch)
    producer = cluster.producer("pipeline-control")
    try:
        producer.send(control_topic, key, value if on else None, partition=0, delivered=delivered)
        producer.flush(ACK_TIMEOUT_S)
        if not answered.wait(ACK_TIMEOUT_S):
            raise ClusterUnavailable(
                f"the brokers did not acknowledge the record on {control_topic} in {ACK_TIMEOUT_S:g} s: try again"
            )
    finally:
        producer.close(1.0)
    if failures:
        raise failures[0]
