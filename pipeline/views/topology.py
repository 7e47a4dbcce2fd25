"""The topics of the views: made or checked before Faust starts, so that tables and source have equally many partitions.

Faust's own declaration makes a topic when it is missing and believes it when it exists; a changelog with another
partition count than its source would then crash the worker in the middle of a stream. So it is switched off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from pipeline.model.cluster import TopicSpec
from pipeline.model.errors import ClusterError, ClusterUnavailable, NotAuthorized, TopologyError
from pipeline.views.policy import ViewsPolicy

STATE_TABLE, TOTALS_TABLE = "state", "totals"
_COMPACT = {"cleanup.policy": "compact"}
_DLQ_RETENTION_MS = 30 * 86_400_000
_TIMEOUT_MS = 15_000


def changelog(policy: ViewsPolicy, table: str) -> str:
    """The name Faust gives a table's changelog."""
    return f"{policy.group}-{table}-changelog"


def specs(policy: ViewsPolicy, partitions: int) -> list[TopicSpec]:
    """What has to exist, given the source's partition count."""
    topics = policy.topics
    settings: list[tuple[str, Mapping[str, str]]] = [
        (topics.summaries, _COMPACT),
        (topics.rates, _COMPACT),
        (topics.partials, {"cleanup.policy": "delete", "retention.ms": str(7 * 86_400_000)}),
        (topics.dead_letters, {"cleanup.policy": "delete", "retention.ms": str(_DLQ_RETENTION_MS)}),
        (changelog(policy, STATE_TABLE), _COMPACT),
        (changelog(policy, TOTALS_TABLE), _COMPACT),
    ]
    return [TopicSpec(name, partitions, -1, configs) for name, configs in settings]


def missing(wanted: list[TopicSpec], found: Mapping[str, int]) -> list[TopicSpec]:
    """Those to be made. Raises TopologyError for one that exists with another partition count."""
    for spec in wanted:
        if spec.name in found and found[spec.name] != spec.partitions:
            raise TopologyError(
                f"Topic {spec.name} has {found[spec.name]} partitions and the source topic {spec.partitions}: the views need the "
                "same count, so stop them, delete this topic and the group's changelogs, and start them from the beginning."
            )
    return [spec for spec in wanted if spec.name not in found]


def ensure(policy: ViewsPolicy) -> int:
    """Make what is missing, check what exists; gives the source's partition count.

    Raises TopologyError, ClusterUnavailable, NotAuthorized or ClusterError. Needs no running event loop.
    """
    return asyncio.run(_ensure(policy))


async def _ensure(policy: ViewsPolicy) -> int:
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.errors import KafkaError

    admin = AIOKafkaAdminClient(bootstrap_servers=policy.bootstrap, request_timeout_ms=_TIMEOUT_MS)
    try:
        await asyncio.wait_for(admin.start(), _TIMEOUT_MS / 1_000)
        found = await _partition_counts(admin)
        source = policy.topics.source
        if source not in found:
            raise TopologyError(f"Topic {source} does not exist: run `pipeline topics apply`, or correct the prefix.")
        await _create(admin, missing(specs(policy, found[source]), found))
        return found[source]
    except (KafkaError, TimeoutError, OSError) as error:
        raise ClusterUnavailable(
            f"Kafka at {policy.bootstrap} did not answer ({error or 'timed out'}): check the address."
        ) from error
    finally:
        await admin.close()


async def _partition_counts(admin: object) -> dict[str, int]:
    topics = await admin.describe_topics()  # type: ignore[attr-defined]
    return {topic["topic"]: len(topic["partitions"]) for topic in topics}


async def _create(admin: object, wanted: list[TopicSpec]) -> None:
    from aiokafka.admin import NewTopic
    from aiokafka.errors import TopicAlreadyExistsError, TopicAuthorizationFailedError, for_code

    if not wanted:
        return
    made = [NewTopic(spec.name, spec.partitions, 1, topic_configs=dict(spec.configs)) for spec in wanted]
    for topic in made:
        topic.replication_factor = -1  # the broker's default; aiokafka's constructor refuses it, the protocol doesn't
    answer = await admin.create_topics(made, timeout_ms=_TIMEOUT_MS)  # type: ignore[attr-defined]
    for name, code, *text in answer.topic_errors:
        kind = for_code(code)
        if code == 0 or kind is TopicAlreadyExistsError:
            continue
        if kind is TopicAuthorizationFailedError:
            raise NotAuthorized(f"Topic {name} can't be created: the principal needs the CREATE right on it.")
        raise ClusterError(f"Topic {name} can't be created: {kind.__name__} {' '.join(map(str, text))}.")
