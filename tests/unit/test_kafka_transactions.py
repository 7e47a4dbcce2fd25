"""How a transactional producer is left: librdkafka must never be destroyed with a transaction as it stands (findings, 1)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from pipeline.kafka import transaction_thread as module
from pipeline.kafka.client_log import ClientLog
from pipeline.kafka.transactions import KafkaTransactions
from pipeline.model.cluster import Position, TopicPartition
from pipeline.model.errors import ClusterError, ClusterUnavailable
from pipeline.model.transactions import Membership, TransactionPolicy
from tests.integration.waiting import until

WAIT_S = 10.0


class _Client:
    """What the product does to a producer, in order, up to its destruction."""

    done: list[str]
    refused: KafkaError | None
    free: threading.Event

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

    def send_offsets_to_transaction(self, offsets: object, token: object, timeout_s: float) -> None:
        self.done.append("asked")
        assert self.free.wait(WAIT_S)

    def commit_transaction(self, timeout_s: float) -> None:
        self.done.append("committed")

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
    monkeypatch.setattr(_Client, "free", threading.Event(), raising=False)
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


def test_a_call_that_does_not_come_back_is_given_up_after_its_time_and_not_before(
    done: list[str], transactions: KafkaTransactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """librdkafka's issue 5456: else a subscription stands still for good, and nobody knows why."""
    now_s = time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now_s)
    asked(transactions.begin)
    answers: list[ClusterError | None] = []
    transactions.commit({TopicPartition("t", 0): Position(1)}, Membership("m", object()), answers.append)
    until("the call is under way", lambda: "asked" in done)
    now_s += 10.0 + 4.9
    transactions.mind()
    assert answers == [], "10 s are its time, and some more are grace"
    now_s += 0.2
    transactions.mind()
    assert [type(error) for error in answers] == [ClusterUnavailable]
    asked(transactions.abort)
    asked(transactions.begin)
    assert done == ["made", "begun", "asked", "made", "begun"]
    assert transactions.rebuilt == 1
    _Client.free.set()
    until("the old one is gone", lambda: "destroyed with 0 unreported" in done)
    assert done[5:] == ["committed", "destroyed with 0 unreported"]
    assert len(answers) == 1, "what it says in the end is not heard"
    transactions.close(WAIT_S)
