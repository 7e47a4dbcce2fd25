"""The topics of a test go when it ends. All tests share one broker, which took up to half of a slow machine once it had 3,000 topics:
every client that asks for all topics is told of each."""

from __future__ import annotations

from functools import lru_cache

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from tests.patience import PATIENCE

_ANSWER_S = 10 * PATIENCE


@lru_cache(8)
def _admin(bootstrap: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})


def forget_topics(bootstrap: str, part: str) -> None:
    """Delete those whose name contains `part`, which no other test's does. Not waited for; in memory there is nothing to do."""
    if bootstrap.startswith("memory://"):
        return
    admin = _admin(bootstrap)
    try:
        if names := [name for name in admin.list_topics(timeout=_ANSWER_S).topics if part in name]:
            admin.delete_topics(names)
    except KafkaException as error:  # a test that stopped its broker has nothing to tidy up there
        print(f"the topics of {part} stay: {error}")
