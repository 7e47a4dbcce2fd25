"""What a views process needs to know: where Kafka is, which topics, where tables are kept, how much at a time."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Self

from pipeline.model.errors import ConfigurationError
from pipeline.model.topics import check_topic, lane_topics

GROUP = "views"
STORES = ("memory", "rocksdb")


@dataclass(frozen=True, slots=True)
class ViewTopics:
    """The topics the views read and write, with the environment prefix in them.

    `partials` is between the two agents: a partition's share of a rate, under the rate's key.
    """

    source: str
    summaries: str
    rates: str
    partials: str
    dead_letters: str


@dataclass(frozen=True, slots=True)
class ViewsPolicy:
    """One views process. `batch_records` bounds what is in flight per process, `batch_wait_ms` how long a view lags.

    `keep_days` is how long a table remembers a run or a minute after its last event; what was written stays in the output
    topics. An event that comes later than that starts its run or minute anew. `web_port` 0 = no HTTP.
    """

    bootstrap: str
    prefix: str = ""
    store: str = "memory"
    data_dir: str = ""
    registry: str = ""
    web_port: int = 0
    batch_records: int = 1_000
    batch_wait_ms: int = 200
    commit_interval_ms: int = 1_000
    session_timeout_ms: int = 10_000
    delivery_timeout_ms: int = 60_000
    keep_days: float = 7.0

    def __post_init__(self) -> None:
        if self.store not in STORES:
            raise ConfigurationError(f"store={self.store!r} is not one of {', '.join(STORES)}: choose one of them.")
        if self.store == "rocksdb" and not self.data_dir:
            raise ConfigurationError("store='rocksdb' needs data_dir: give a folder that survives restarts.")
        if self.batch_records < 1 or self.batch_wait_ms < 1:
            raise ConfigurationError("batch_records and batch_wait_ms must be at least 1: a view works in batches.")
        if not 0 <= self.web_port <= 65_535:
            raise ConfigurationError(f"web_port={self.web_port} is not a port: use 0 (off) to 65535.")

    @property
    def group(self) -> str:
        """The consumer group, also the Faust app id: its changelog topics start with it."""
        return self.prefix + GROUP

    @property
    def topics(self) -> ViewTopics:
        source = f"{self.prefix}agent.run.events"
        return ViewTopics(
            source=source,
            summaries=check_topic(f"{self.prefix}agent.run.summaries"),
            rates=check_topic(f"{self.prefix}agent.run.rates"),
            partials=check_topic(f"{self.prefix}agent.run.rates.partials"),
            dead_letters=lane_topics(source, self.group, ()).dead_letters,
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))
