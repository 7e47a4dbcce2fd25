"""Everything that can go wrong, as one drawn tree.

    PipelineError
    |- ConfigurationError      a setting, declaration or topology that can't work; nothing was consumed
    |  |- TopologyError        topics are missing or would lose data
    |  |  `- TopicExists       somebody else made it first, or an earlier try of ours did
    |- ClusterError            Kafka said no, or did not answer
    |  |- ClusterUnavailable   it may heal: retried with back-off by those who can wait
    |  |- NotAuthorized        an ACL is missing
    |  |- RecordTooLarge       the topic does not take a record of this size
    |  `- FencedError          this member no longer owns what it wanted to write for
    |     `- ProducerFenced    another process uses this one's transactional id
    |- CodecError              bytes <-> values
    |  |- UndecodableError     the bytes are wrong and stay wrong: dead letter, no retry
    |  |- EncodeError          the value does not fit its schema: nothing was sent
    |  |- SchemaUnavailable    the registry did not answer: wait, never a dead letter
    |  `- IncompatibleSchema   a schema change would break readers
    |- PublishError            a record could not be published
    |  `- BufferFull           the bounded buffer is full and its policy is to say so
    |- InvalidJob              a job that can't be asked for: an unknown type, an input that does not fit it
    |  |- PayloadTooLarge      its input has more bytes than a job may have
    |  `- SecretInPayload      its input looks as if it held a secret
    |- BlobError               a blob store did not do what it was asked
    |  `- BlobMissing          it has no blob of this name
    |- ContractMissing         a task names an execution contract that its worker does not have
    |- AgentMissing            a task names an agent that its worker does not have, or none where one is needed
    |- JobMissing              no job of this id: unknown, or expired
    |- JobStateError           what was asked of a job does not go with the state that it is in
    |- ScheduleMissing         no schedule of this name
    |- JobUnsuccessful         a job ended without a result
    |- ResultTimeout           a job had no ending in time
    `- BrokerStartError        the embedded broker could not be started

Each message is one sentence that names the setting, topic, offset or field, and what to do.
What a *handler* raises to steer its record (`Retry`, `Reject`) is not an error of the pipeline: see `outcome`.
"""

from __future__ import annotations


class PipelineError(Exception):
    """Root of the tree: catch this to catch everything the product raises on purpose."""


class ConfigurationError(PipelineError):
    """A setting or declaration that can't work."""


class TopologyError(ConfigurationError):
    """Topics are missing or their settings would lose data."""


class TopicExists(TopologyError):
    """A topic that was to be made is there already."""


class ClusterError(PipelineError):
    """Kafka refused a request."""


class ClusterUnavailable(ClusterError):
    """Kafka did not answer in time; trying again may help."""


class NotAuthorized(ClusterError):
    """The principal lacks an ACL."""


class RecordTooLarge(ClusterError):
    """The topic does not take a record of this size."""


class FencedError(ClusterError):
    """This member no longer owns the partition."""


class StaleGeneration(ClusterError):
    """The group went on to a new generation, or is about to: a member that is still in it has to ask again as of that one."""


class ProducerFenced(FencedError):
    """Another process took over the transactional id: going on would only fence that one in turn."""


class CodecError(PipelineError):
    """Bytes and values do not agree."""


class UndecodableError(CodecError):
    """The bytes are wrong and will stay wrong."""


class EncodeError(CodecError):
    """The value does not fit its schema."""


class SchemaUnavailable(CodecError):
    """The registry did not answer, so the schema of an id is not known yet."""

    def __init__(self, message: str, schema_id: int | None = None) -> None:
        super().__init__(message)
        self.schema_id = schema_id


class IncompatibleSchema(CodecError):
    """A schema would break readers or writers that exist."""


class PublishError(PipelineError):
    """A record could not be published."""


class BufferFull(PublishError):
    """The bounded buffer stayed full for as long as the policy allows."""


class BrokerStartError(PipelineError):
    """The embedded broker could not be started."""


class InvalidJob(PipelineError):
    """What was asked for can't be a job: an unknown type, an input that does not fit it, one that is too large or holds a secret."""


class PayloadTooLarge(InvalidJob):
    """The input has `size` bytes, more than the `most` that a job may have."""

    def __init__(self, message: str, size: int, most: int) -> None:
        super().__init__(message)
        self.size = size
        self.most = most


class SecretInPayload(InvalidJob):
    """The field `field` of the input (a path such as `items[2].token`) looks as if it held a secret. The message never has the value."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


class BlobError(PipelineError):
    """The blob store said no, or did not answer."""


class BlobMissing(BlobError):
    """There is no blob of this name."""


class ContractMissing(PipelineError):
    """A task names an execution contract that its worker does not have: a dead letter, until some worker has it."""


class AgentMissing(PipelineError):
    """A task names an agent that its worker does not have, or none where its contract needs one."""


class JobMissing(PipelineError):
    """There is no job of this id: `expired` when it was one and is forgotten, else nobody ever heard of it."""

    def __init__(self, message: str, expired: bool = False) -> None:
        super().__init__(message)
        self.expired = expired


class JobStateError(PipelineError):
    """What was asked of a job does not go with its state, `state`: a job that has completed can't be retried, for example."""

    def __init__(self, message: str, state: str) -> None:
        super().__init__(message)
        self.state = state


class ScheduleMissing(PipelineError):
    """The queue has no schedule of this name."""


class JobUnsuccessful(PipelineError):
    """The job ended without a result: given up, or cancelled. `state` is its state, `error_class` that of its last failure."""

    def __init__(self, message: str, state: str, error_class: str = "") -> None:
        super().__init__(message)
        self.state = state
        self.error_class = error_class


class ResultTimeout(PipelineError):
    """The job had no ending within the time that the caller would wait. It goes on."""
