"""What clients say of their trouble: one readable line per kind and pause, the rest counted, heal lines at debug only."""

from __future__ import annotations

import logging
import time

import pytest

from pipeline.kafka.client_log import PAUSE_S, ClientLog, readable
from pipeline.kafka.cluster import CLIENT_LOG, connect
from pipeline.kafka.embedded.ports import free_ports

FAILED = (
    "127.0.0.1:1/bootstrap: Connect to ipv4#127.0.0.1:1 failed: Connection refused "
    "(after 0ms in state CONNECT, 3 identical error(s) suppressed)"
)
GETPID = "[thrd:main]: Failed to acquire idempotence PID from broker 127.0.0.1:9/1: Broker: Coordinator load in progress: retrying"
LINE = "%s [%s] %s"


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def client(clock: Clock, caplog: pytest.LogCaptureFixture) -> ClientLog:
    caplog.set_level(logging.WARNING)
    return ClientLog(logging.getLogger("pipeline.test.client"), clock)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_broker_that_is_away_is_one_line_and_the_next_says_how_many(
    client: ClientLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(20):
        client.log(logging.ERROR, LINE, "FAIL", "app#producer-1", f"[thrd:x]: {FAILED}")
        client.error(f"{FAILED} [_TRANSPORT]")
        client.error("1/1 brokers are down [_ALL_BROKERS_DOWN]")
    assert lines(caplog) == ["kafka client: broker 127.0.0.1:1 can't be reached: connection refused; trying again"]
    clock.now_s += PAUSE_S
    client.error(f"{FAILED} [_TRANSPORT]")
    assert lines(caplog)[1].endswith("trying again (59 more of the kind since the last)")
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_kinds_do_not_hide_each_other(client: ClientLog, caplog: pytest.LogCaptureFixture) -> None:
    client.error(f"{FAILED} [_TRANSPORT]")
    client.error("SASL authentication error [_AUTHENTICATION]")
    client.log(logging.ERROR, LINE, "SSL", "app#producer-1", "handshake failed")
    assert len(lines(caplog)) == 3


def test_what_heals_by_itself_is_for_debugging(client: ClientLog, caplog: pytest.LogCaptureFixture) -> None:
    client.log(logging.WARNING, LINE, "GETPID", "app#producer-1", GETPID)
    client.log(logging.INFO, LINE, "CONF", "app#producer-1", "chatter")
    client.log(logging.ERROR, LINE, "ERROR", "app#producer-1", FAILED)
    assert lines(caplog) == []
    caplog.set_level(logging.DEBUG, "pipeline.test.client")
    client.log(logging.WARNING, LINE, "GETPID", "app#producer-1", GETPID)
    assert [record.levelno for record in caplog.records] == [logging.DEBUG]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (FAILED, "broker 127.0.0.1:1 can't be reached: connection refused; trying again"),
        (f"sasl_ssl://{FAILED}", "broker 127.0.0.1:1 can't be reached: connection refused; trying again"),
        ("b:9092/7: Disconnected (after 3ms in state UP)", "broker b:9092: Disconnected (after 3ms in state UP)"),
        ("something else", "something else"),
    ],
)
def test_a_line_is_for_people(text: str, shown: str) -> None:
    assert readable(text) == shown


def test_real_clients_of_one_cluster_share_the_line(caplog: pytest.LogCaptureFixture) -> None:
    (port,) = free_ports(1)
    caplog.set_level(logging.DEBUG, CLIENT_LOG)
    cluster = connect(f"127.0.0.1:{port}")
    clients = [cluster.producer("one"), cluster.producer("two")]
    end = time.monotonic() + 20
    while sum(record.levelno == logging.DEBUG for record in caplog.records) < 4:
        assert time.monotonic() < end, "the clients say nothing"
        time.sleep(0.02)
    for client in clients:
        client.close(0)
    shown = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert shown == [f"kafka client: broker 127.0.0.1:{port} can't be reached: connection refused; trying again"]
