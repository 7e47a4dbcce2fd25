"""librdkafka's errors as ours: who can heal, who is fenced, who lacks an ACL, and which fetch faults are data."""

from __future__ import annotations

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import Message as Fetched

from pipeline.model.cluster import FetchFault, TopicPartition
from pipeline.model.errors import (
    ClusterError,
    ClusterUnavailable,
    FencedError,
    NotAuthorized,
    RecordTooLarge,
    TopicExists,
    TopologyError,
)

FENCED_CODES = frozenset(
    {
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError.STALE_MEMBER_EPOCH,
        KafkaError.FENCED_MEMBER_EPOCH,
        KafkaError.UNRELEASED_INSTANCE_ID,
        KafkaError.PRODUCER_FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError._FENCED,
        KafkaError._ASSIGNMENT_LOST,
    }
)
PRODUCER_FENCED_CODES = frozenset(
    {
        KafkaError.PRODUCER_FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError._FENCED,
    }
)
_DENIED = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError._AUTHENTICATION,
    }
)
_MAY_HEAL = frozenset(
    {
        KafkaError._TIMED_OUT,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._MSG_TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
        KafkaError._WAIT_COORD,
        KafkaError._DESTROY,
        KafkaError._DESTROY_BROKER,
        KafkaError._PURGE_QUEUE,
        KafkaError._PURGE_INFLIGHT,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.NOT_COORDINATOR,
        KafkaError.NOT_CONTROLLER,
        KafkaError.NOT_ENOUGH_REPLICAS,
        KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        KafkaError.KAFKA_STORAGE_ERROR,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.UNSTABLE_OFFSET_COMMIT,
        KafkaError.THROTTLING_QUOTA_EXCEEDED,
    }
)
_FAULT_KINDS = {
    KafkaError._BAD_COMPRESSION: "bad_batch",
    KafkaError._BAD_MSG: "bad_batch",
    KafkaError.INVALID_MSG: "bad_batch",
    KafkaError._NOT_IMPLEMENTED: "bad_batch",
    KafkaError._AUTO_OFFSET_RESET: "out_of_range",
    KafkaError.OFFSET_OUT_OF_RANGE: "out_of_range",
    KafkaError._LOG_TRUNCATION: "out_of_range",
    KafkaError.UNKNOWN_TOPIC_OR_PART: "unknown_topic",
    KafkaError._UNKNOWN_TOPIC: "unknown_topic",
    KafkaError._UNKNOWN_PARTITION: "unknown_topic",
    KafkaError.UNKNOWN_TOPIC_ID: "unknown_topic",
    KafkaError.TOPIC_EXCEPTION: "unknown_topic",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "not_authorized",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "not_authorized",
}
_TOPOLOGY = frozenset(
    {
        KafkaError.INVALID_PARTITIONS,
        KafkaError.INVALID_REPLICATION_FACTOR,
        KafkaError.INVALID_CONFIG,
        KafkaError.POLICY_VIOLATION,
    }
)


def cluster_error(error: KafkaError, doing: str) -> ClusterError:
    """One sentence: what was tried, what Kafka said, its code, and what to do where that is known."""
    code, said = error.code(), f"{doing} failed: {error.str()} [{error.name()}]"
    if code in FENCED_CODES:
        return FencedError(f"{said}; this member was replaced, so its work belongs to another one now")
    if code in _DENIED:
        return NotAuthorized(
            f"{doing} is not authorized: {error.str()} [{error.name()}]; grant the ACL or correct the credentials"
        )
    if code in (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE):
        return RecordTooLarge(f"{said}; raise max.message.bytes of the topic")
    if code in _MAY_HEAL or error.retriable():
        return ClusterUnavailable(f"{said}; check that the brokers are reachable")
    return ClusterError(said)


def raised(exception: KafkaException, doing: str) -> ClusterError | TopologyError:
    """The same for what a confluent call raised; a refused topic or setting is a `TopologyError`."""
    error = exception.args[0]
    if not isinstance(error, KafkaError):
        return ClusterError(f"{doing} failed: {exception}")
    if error.code() == KafkaError.TOPIC_ALREADY_EXISTS:
        return TopicExists(f"{doing} failed: {error.str()} [{error.name()}]")
    if error.code() in _TOPOLOGY:
        return TopologyError(f"{doing} failed: {error.str()} [{error.name()}]")
    return cluster_error(error, doing)


def not_taken(exception: KafkaException, topic: str, value: bytes | None) -> ClusterError | TopologyError:
    """What `produce` raised, before any broker heard of the record."""
    size = len(value or b"")
    error = raised(exception, f"sending {size} bytes to {topic}")
    if not isinstance(error, RecordTooLarge):
        return error
    return RecordTooLarge(
        f"a record for {topic} (value: {size} bytes) is larger than the client takes: raise producer.message.max.bytes, and "
        "producer.queue.buffering.max.kbytes above it, in PIPELINE_CLIENT"
    )


def is_fatal(error: KafkaError) -> bool:
    """The client can't go on: librdkafka says so in the code or in a flag, depending on where it comes up."""
    return error.fatal() or error.code() == KafkaError._FATAL


def fatal_error(error: KafkaError, who: str) -> ClusterError:
    """The code is only "fatal", the reason is in the text. A static member that was replaced is the one worth knowing."""
    text = error.str()
    if "fenced" in text or "instance ID is still used" in text:
        return FencedError(f"{who} has to stop: {text}; give every member its own instance_id")
    return ClusterError(f"{who} has to stop: {text} [{error.name()}]")


def fault_kind(error: KafkaError) -> str:
    """The `FetchFault.kind` of a message's error, "other" where it has none of its own."""
    return _FAULT_KINDS.get(error.code(), "other")


def fetch_fault(message: Fetched, error: KafkaError) -> FetchFault:
    """The error of a message as data. One without a right is said as a sentence that names the topic: it may be the
    only thing that a worker ever says of it.

    What concerns a topic as a whole comes with an invalid offset, and with any partition: we say -1 for both.
    """
    topic, offset, partition = message.topic() or "", message.offset(), message.partition()
    if offset is None or partition is None or offset < 0:
        offset = partition = -1
    text = str(cluster_error(error, f"reading {topic}")) if error.code() in _DENIED else error.str()
    return FetchFault(TopicPartition(topic, partition), offset, fault_kind(error), text)
