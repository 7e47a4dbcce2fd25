"""Reads and writes the control topic: the switches operators set and workers follow."""

from __future__ import annotations

import contextlib

from pipeline.inspect.appending import Entry, append
from pipeline.inspect.scan import read_to_end
from pipeline.model.cluster import Cluster, TopicPartition
from pipeline.model.control import ControlRecordError, Switch, Switches, encode


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
    """Turn it on or off and wait for the acknowledgement. Raises what `append` does."""
    key, value = encode(switch)
    append(cluster, control_topic, [Entry(key, value if on else None, partition=0)])
