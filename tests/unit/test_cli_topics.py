"""`pipeline topics list` while somebody deletes topics."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from pipeline.cli.topics import _counts
from pipeline.memory.cluster import MemoryCluster
from pipeline.model.cluster import TopicPartition, TopicSpec
from pipeline.model.errors import PipelineError


@pytest.fixture
def cluster() -> MemoryCluster:
    cluster = MemoryCluster("lists")
    cluster.admin().create_topics([TopicSpec("goes", 2), TopicSpec("stays", 2)])
    return cluster


def test_a_topic_that_is_deleted_meanwhile_is_left_out(cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    producer = cluster.producer("p")
    producer.send("stays", b"k", b"v", partition=1)
    assert producer.flush(5) == 0
    admin = cluster.admin()
    listed = list(admin.topics().values())
    ask = admin.end_offsets

    def deleted_first(partitions: Collection[TopicPartition], timeout_s: float = 1.0) -> dict[TopicPartition, int]:
        if "goes" in admin.topic_names():
            admin.delete_topics(["goes"])
        return ask(partitions, timeout_s)

    monkeypatch.setattr(admin, "end_offsets", deleted_first)
    assert _counts(admin, listed) == {"stays": 1}


def test_other_trouble_is_told(cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    admin = cluster.admin()

    def refused(partitions: Collection[TopicPartition], timeout_s: float = 1.0) -> dict[TopicPartition, int]:
        raise PipelineError("no")

    monkeypatch.setattr(admin, "end_offsets", refused)
    with pytest.raises(PipelineError, match="no"):
        _counts(admin, list(admin.topics().values()))
