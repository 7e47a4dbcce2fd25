"""`pipeline tail` on real Kafka: filters, times, ends that are no record, and what it refuses before it connects."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import confluent_kafka
import pytest
from typer.testing import CliRunner, Result

import pipeline.inspect.decoding as decoding
from pipeline.cli.main import app
from pipeline.inspect.decoding import Shown
from pipeline.kafka.cluster import connect
from pipeline.model.cluster import Headers, TopicSpec
from pipeline.model.headers import DeliveryHeaders, ErrorInfo, dead_letter_headers

NOW_MS = int(time.time() * 1000)
HOUR_MS = 3_600_000


@dataclass
class Tail:
    """A topic of two partitions with ten dead letters, one an hour, the oldest ten hours old; and the command."""

    topic: str
    address: str
    run: Callable[..., Result]

    def __call__(self, *arguments: str) -> list[Any]:
        shown = self.run(self.topic, *arguments, "--json")
        assert shown.exit_code == 0, shown.output
        return [json.loads(line) for line in shown.stdout.splitlines()]

    def numbers(self, *arguments: str) -> list[int]:
        return sorted(record["value"]["n"] for record in self(*arguments))


def headers_of(number: int) -> Headers:
    delivery = DeliveryHeaders(
        attempt=number % 5,
        hop=1,
        epoch=1,
        origin_topic="agent.run.events",
        origin_partition=number % 2,
        origin_offset=100 + number,
        origin_timestamp_ms=NOW_MS - 3_600_000,
        group="billing",
        error=ErrorInfo("RateLimit" if number < 5 else "Timeout", "E", "429"),
    )
    return dead_letter_headers([("pl.event_id", b"e-%d" % number)], delivery)


def ago(hours: float) -> str:
    return datetime.fromtimestamp(NOW_MS / 1_000 - 3_600 * hours, UTC).isoformat()


def age(hours: float) -> str:
    """By now, of what was so many hours old when this file was loaded: a run of all tests has taken longer than half an hour."""
    return f"{time.time() - NOW_MS / 1_000 + 3_600 * hours:.0f}s"


@pytest.fixture(scope="module")
def letters(kafka: str) -> str:
    topic = f"tail.{uuid.uuid4().hex[:10]}.dlq"
    cluster = connect(kafka)
    cluster.admin().create_topics([TopicSpec(topic, 2)])
    producer = cluster.producer()
    for number in range(10):
        value = json.dumps({"n": number, "tenant": "acme" if number % 3 else "other", "tool": "search"}).encode()
        at_ms = NOW_MS - (10 - number) * HOUR_MS
        producer.send(topic, b"run-%d" % (number // 2), value, headers_of(number), number % 2, at_ms)
    assert producer.flush(20.0) == 0
    producer.close(5.0)
    return topic


@pytest.fixture
def tail(kafka: str, letters: str, monkeypatch: pytest.MonkeyPatch) -> Tail:
    monkeypatch.setenv("PIPELINE_BROKER", kafka)
    runner = CliRunner()
    return Tail(letters, kafka, lambda *arguments: runner.invoke(app, ["tail", *arguments]))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Offsets of what was decoded."""
    found: list[int] = []
    show = decoding.show

    def watched(codec: Any, message: Any) -> Shown:
        found.append(message.offset())
        return show(codec, message)

    monkeypatch.setattr(decoding, "show", watched)
    return found


EARLIEST = ("--from", "earliest", "--no-follow")


@pytest.mark.parametrize(
    ("where", "wanted"),
    [
        ('attempt >= 3 and error.class == "RateLimit"', [3, 4]),
        ('origin.offset in (103, 107) or event_id == "e-9"', [3, 7, 9]),
        ('tenant == "other"', [0, 3, 6, 9]),
        ('value.n > 6.5 and key like "run-*" and partition == 0', [8]),
        (f'timestamp >= "{ago(3)}"', [7, 8, 9]),
        ("replay.id is not null", []),
    ],
    ids=[
        "headers",
        "places",
        "tenant",
        "value",
        "time",
        "replay",
    ],  # not the texts: one has the time of day in it
)
def test_where_chooses(tail: Tail, where: str, wanted: list[int]) -> None:
    assert tail.numbers("--where", where, *EARLIEST) == wanted


def test_where_chooses_by_age(tail: Tail) -> None:
    assert tail.numbers("--where", f"age > {age(8.5)} and age < {age(10.5)}", *EARLIEST) == [0, 1]
    assert tail.numbers("--where", "age > 8h and age < 30d", *EARLIEST)[:2] == [0, 1]


def test_a_filter_of_headers_and_keys_decodes_only_what_is_shown(tail: Tail, decoded: list[int]) -> None:
    chosen = tail("--where", 'attempt == 3 and key == "run-1" and partition == 1', *EARLIEST)
    assert [record["value"]["n"] for record in chosen] == [3]
    assert decoded == [record["offset"] for record in chosen]
    decoded.clear()
    assert tail.numbers("--where", "value.n == 3", *EARLIEST) == [3]
    assert len(decoded) == 10, "once each, also the one that is shown"


def test_key_and_type_are_short_for_conditions(tail: Tail) -> None:
    assert tail.numbers("--key", "run-1", *EARLIEST) == [2, 3]
    assert tail.numbers("--key", "run-1", "--type", "json", "--where", "attempt == 2 or attempt == 4", *EARLIEST) == [2]
    assert tail.numbers("--type", "ToolCall", *EARLIEST) == []
    assert tail.numbers("--key", 'odd " \\ key', *EARLIEST) == []


def test_from_time_and_to_time_choose_by_the_records_own_times(tail: Tail) -> None:
    assert tail.numbers("--from-time", ago(4), "--no-follow") == [6, 7, 8, 9]
    assert tail.numbers("--to-time", ago(8)) == [0, 1], "the end is left out, and nothing is waited for"
    assert tail.numbers("--from-time", ago(8.5), "--to-time", ago(5.5)) == [2, 3, 4]
    assert tail.numbers("--last", age(2.5), "--no-follow") == [8, 9]
    assert tail.numbers("--from", "1:3", "--to-time", ago(2.5)) == [7]


def test_records_out_of_time_order_are_neither_missed_nor_shown_wrongly(tail: Tail, topic_name: str) -> None:
    cluster = connect(tail.address)
    cluster.admin().create_topics([TopicSpec(topic_name, 1)])
    producer = cluster.producer()
    for hours in (9, 5, 7, 1, 6, 4):
        producer.send(topic_name, None, b'{"n": %d}' % hours, None, 0, NOW_MS - hours * HOUR_MS)
    assert producer.flush(20.0) == 0
    producer.close(5.0)
    odd = Tail(topic_name, tail.address, tail.run)
    assert odd.numbers("--from-time", ago(6.5), "--to-time", ago(3.5)) == [4, 5, 6]


def test_a_topic_that_ends_in_a_transactions_marker_is_shown_whole_and_at_once(tail: Tail, topic_name: str) -> None:
    connect(tail.address).admin().create_topics([TopicSpec(topic_name, 1)])
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": tail.address, "transactional.id": topic_name, "log_level": 0}
    )
    producer.init_transactions(20.0)
    for first in (0, 2):
        producer.begin_transaction()
        for number in (first, first + 1):
            producer.produce(topic_name, b'{"n": %d}' % number)
        producer.commit_transaction(20.0)
    producer.begin_transaction()
    producer.produce(topic_name, b'{"n": 99}')
    producer.flush(20.0)
    started = time.monotonic()
    shown = Tail(topic_name, tail.address, tail.run)
    assert shown.numbers(*EARLIEST) == [0, 1, 2, 3], "the open transaction is not waited for"
    assert time.monotonic() - started < 30.0, "the broker ends it after a minute"
    producer.abort_transaction(20.0)
    assert shown.numbers(*EARLIEST) == [0, 1, 2, 3]


def test_following_stops_at_the_limit_of_what_matches(tail: Tail) -> None:
    assert tail.numbers("--from", "earliest", "--where", "attempt == 0", "--limit", "2") == [0, 5]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--from", "earliest", "--last", "1h"), "--from and --last each say where to start"),
        (("--last", "1h", "--from-time", ago(5)), "--last and --from-time each say where to start"),
        (("--to-time", "2999-01-01"), "--to-time '2999-01-01' is in the future"),
        (("--from-time", "2999-01-01T00:00Z"), "--from-time '2999-01-01T00:00Z' is in the future"),
        (("--from-time", "noon"), "--from-time 'noon' is not a time"),
        (("--from-time", ago(5), "--to-time", ago(6)), "is not after the start"),
        (("--from", "0:77"), "has offsets 0 to 5 (its end)"),
        (("--from", "2:0"), "has partitions 0 to 1"),
        (("--last", "soon"), "--last='soon' is not a duration"),
    ],
)
def test_what_makes_no_sense_is_one_sentence_and_exit_code_2(tail: Tail, arguments: tuple[str, ...], said: str) -> None:
    shown = tail.run(tail.topic, *arguments)
    assert shown.exit_code == 2
    assert said in shown.stderr
    assert shown.stderr.count("\n") == 1


def test_a_filter_that_is_wrong_is_shown_with_a_caret_before_anything_is_reached(tail: Tail) -> None:
    shown = tail.run("t", "--where", 'attempt >= 3 and error.clas == "x"', "--key", "k", "--broker", "127.0.0.1:1")
    assert shown.exit_code == 2
    sentence, line, caret = shown.stderr.splitlines()
    assert sentence == "Error: the field 'error.clas' is not known: did you mean error.class?"
    assert line == '  attempt >= 3 and error.clas == "x"', "as it was typed, without what --key adds"
    assert line[caret.index("^") :].startswith("error.clas")
    shown = tail.run("t", "--where", "key == \x1b[31m", "--broker", "127.0.0.1:1")
    assert shown.exit_code == 2
    assert "\x1b" not in shown.stderr
