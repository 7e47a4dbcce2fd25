"""Where a partition's lanes stand when it is opened, and why it can't be: records that waited were deleted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.core.progress import Progress, decode
from pipeline.model.cluster import Position, TopicPartition
from pipeline.model.errors import TopologyError


def expired_lane(
    group: str,
    lanes: Sequence[TopicPartition],
    committed: Mapping[TopicPartition, Position | None],
    beginnings: Mapping[TopicPartition, int],
) -> TopologyError | None:
    """A lane that lost records which were waiting in it: retention was shorter than the group was away."""
    for tp in lanes:
        position = committed[tp]
        if position is not None and position.offset < beginnings[tp]:
            return TopologyError(
                f"{tp.topic}-{tp.partition} now begins at offset {beginnings[tp]}, but group {group} had "
                f"records waiting from {position.offset}: they were deleted; raise retention.ms of the topic, "
                "then, with the workers stopped, set the group's offset to that place (kafka-consumer-groups --reset-offsets)"
            )
    return None


def out_of_range(group: str, source: TopicPartition, offset: int, beginning: int, end: int) -> TopologyError:
    return TopologyError(
        f"group {group} stands at offset {offset} of {source.topic}-{source.partition}, which holds {beginning}..{end}: "
        "records were deleted before they were processed; set its offset where it shall go on, with the workers stopped "
        "(kafka-consumer-groups --reset-offsets)"
    )


def lane_progress(position: Position | None, beginning: int, end: int) -> Progress:
    """Lanes always start at the earliest; a lane that was made anew (its end is below the commit) starts over."""
    if position is None or position.offset > end:
        return Progress(beginning, beginning)
    return decode(position.offset, position.metadata)
