"""How a transactional producer is left: librdkafka must never be destroyed with a transaction as it stands (findings, 1)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from pipeline.kafka import transactions as module
from pipeline.kafka.client_log import ClientLog
from pipeline.kafka.transactions import KafkaTransactions
from pipeline.model.errors import ClusterError
from pipeline.model.transactions import TransactionPolicy

WAIT_S = 10.0


class _Client:
    """What the product does to a producer, in order, up to its destruction."""

    done: list[str]
    refused: KafkaError | None

    def __init__(self, settings: dict[str, Any]) -> None:
        self._waiting: list[Callable[[KafkaError, Any], None]] = []
        self.done.append("made")

    def __del__(self) -> None:
        self.done.append(f"destroyed with {len(self._waiting)} unreported")

    def __len__(self) -> int:
        return len(self._waiting)

    def init_transactions(self, timeout_s: float) -> None:
        pass

    def begin_transaction(self) -> None:
        self.done.append("begun")

    def produce(
        self, topic: str, value: bytes, key: None, partition: int, report: Callable[..., None], *_: Any
    ) -> None:
        self._waiting.append(report)

    def poll(self, timeout_s: float) -> int:
        return 0

    def purge(self) -> None:
        self.done.append("purged")

    def flush(self, timeout_s: float) -> int:
        """Reports one by one, as librdkafka does when its time is over before all are."""
        if self._waiting and "purged" in self.done:
            self._waiting.pop(0)(KafkaError(KafkaError._PURGE_QUEUE), None)
        return len(self._waiting)

    def abort_transaction(self, timeout_s: float) -> None:
        assert timeout_s <= 3.0, "brokers that are away are not waited for"
        self.done.append("aborted")
        if self.refused is not None:
            raise KafkaException(self.refused)


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(module, "Producer", _Client)
    monkeypatch.setattr(_Client, "done", [], raising=False)
    monkeypatch.setattr(_Client, "refused", None, raising=False)
    return _Client.done


@pytest.fixture
def transactions(done: list[str]) -> KafkaTransactions:
    log = ClientLog(logging.getLogger("pipeline.test.client"))
    return KafkaTransactions({}, TransactionPolicy("id", "g", "t", 10_000), log, lambda said: None)


def asked(ask: Callable[[Callable[[ClusterError | None], None]], None]) -> None:
    answered = threading.Event()
    answers: list[ClusterError | None] = []

    def hear(error: ClusterError | None) -> None:
        answers.append(error)
        answered.set()

    ask(hear)
    assert answered.wait(WAIT_S)
    assert answers == [None]


LEFT = ["made", "begun", "aborted", "purged", "purged", "destroyed with 0 unreported", "made"]
"""The second purge is for the second of two records: each flush reports one here."""


@pytest.mark.parametrize("refused", [None, KafkaError(KafkaError._TIMED_OUT), KafkaError(KafkaError._CONFLICT)])
def test_a_transaction_has_begun_to_end_before_its_producer_is_destroyed(
    refused: KafkaError | None, done: list[str], transactions: KafkaTransactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the process can be: SIGABRT, where the coordinator is told of the first partitions at that moment."""
    monkeypatch.setattr(_Client, "refused", refused)
    asked(transactions.begin)
    for _ in range(2):
        transactions.send("t", None, b"v")
    asked(transactions.abort)
    assert done == LEFT
    assert transactions.rebuilt == 1
    transactions.close(WAIT_S)
    assert done == [*LEFT, "destroyed with 0 unreported"], "no transaction is open: nothing to abort"


def test_closing_ends_a_transaction_before_its_producer_is_destroyed(
    done: list[str], transactions: KafkaTransactions
) -> None:
    asked(transactions.begin)
    transactions.send("t", None, b"v")
    transactions.close(WAIT_S)
    assert done == ["made", "begun", "aborted", "purged", "destroyed with 0 unreported"]
