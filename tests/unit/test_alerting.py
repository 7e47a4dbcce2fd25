"""Alerts in real time: a webhook that is down and comes back, refuses or hangs; bounds of the queue; what a stop does."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from pipeline.model.alerts import INPUT_CHARS, DeadLetterAlert
from pipeline.model.errors import ConfigurationError
from pipeline.model.headers import ErrorInfo
from pipeline.model.history import Attempt, History
from pipeline.worker.alerting import THREADS_MAX, AlertPolicy, Alerts
from pipeline.worker.webhook import Webhook, signature
from tests.patience import PATIENCE

QUICK = AlertPolicy(pause_s=0.02, pause_max_s=0.1, timeout_s=0.5, window_s=0.5, per_window=100, queue=50)


def alert(number: int = 0, value: Any = None) -> DeadLetterAlert:
    return DeadLetterAlert(
        group="g",
        topic="t.g.dlq",
        partition=0,
        offset=number,
        origin=("t", 0, 1),
        key="k",
        event_id="e",
        handler="h",
        record="R",
        input=value,
        attempt=1,
        attempts=5,
        error=ErrorInfo("c", "t", "m", "s"),
        history=History((Attempt(1, 2, "c", "t", "m", 1),)),
        started_ms=1,
        failed_ms=2,
    )


class Receiver:
    """An HTTP server that answers as it is told."""

    def __init__(self) -> None:
        self.answer: Callable[[int], int] = lambda _: 204
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.paths: list[str] = []
        self.hold = threading.Event()
        self.hold.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((dict(self.headers), body))
                receiver.paths.append(self.path)
                receiver.hold.wait(10)
                status = receiver.answer(len(receiver.got))
                self.send_response(status)
                if status in (301, 302, 307):
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook/s3cret-path"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.hold.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@contextmanager
def alerts(webhook: Webhook | None, policy: AlertPolicy = QUICK, hooks: Any = ()) -> Iterator[Alerts]:
    made = Alerts({"g": hooks}, webhook, lambda: time.time_ns() // 1_000_000, structlog.get_logger(), policy)
    made.start(asyncio.get_running_loop())
    try:
        yield made
    finally:
        made.abandon()


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def test_a_post_is_signed_and_says_what_it_is_about(receiver: Receiver) -> None:
    Webhook(receiver.url, "shared").post(alert(7, {"content": "[pii]"}), 5)
    ((headers, body),) = receiver.got
    assert json.loads(body)["input"] == {"content": "[pii]"}
    assert headers["Pipeline-Alert-Id"] == "t.g.dlq/0/7" == json.loads(body)["id"]
    expected = signature("shared", headers["Pipeline-Timestamp"], body)
    assert hmac.compare_digest(headers["Pipeline-Signature"], expected)
    both = headers["Pipeline-Timestamp"].encode() + b"." + body
    assert expected == "sha256=" + hmac.new(b"shared", both, "sha256").hexdigest(), "as the guide tells receivers"
    assert abs(int(headers["Pipeline-Timestamp"]) - time.time()) < 60
    assert signature("other", headers["Pipeline-Timestamp"], body) != expected
    Webhook(receiver.url).post(alert(), 5)
    assert "Pipeline-Signature" not in receiver.got[1][0]


def test_urls_are_checked_and_never_shown() -> None:
    for url in ("file:///etc/passwd", "ftp://x/y", "hook", "https://", "https:///s3cret"):
        with pytest.raises(ConfigurationError, match="PIPELINE_ALERT_WEBHOOK") as caught:
            Webhook(url)
        assert str(caught.value).count("http") == 1, "only the example"
    assert "s3cret" not in repr(Webhook("https://chat.example/s3cret", "s3cret"))


@pytest.mark.parametrize("beginning", [b"HTT", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\nA: "])
def test_a_receiver_that_answers_byte_by_byte_holds_a_post_for_no_longer_than_its_timeout(beginning: bytes) -> None:
    """Each byte began the timeout of the socket anew: the thread was held for as long as the receiver liked."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        accepted, _ = server.accept()
        with accepted, contextlib.suppress(OSError):
            accepted.sendall(beginning)
            for _ in range(100):
                time.sleep(0.05)
                accepted.sendall(b"x")

    threading.Thread(target=answer, daemon=True).start()
    began_s = time.monotonic()
    with pytest.raises(OSError, match=r"timed out|too long"):
        Webhook(f"http://127.0.0.1:{server.getsockname()[1]}/").post(alert(), 0.4)
    assert time.monotonic() - began_s < 2.5
    server.close()


def test_a_webhook_that_is_down_gets_them_all_in_order_when_it_is_back(receiver: Receiver) -> None:
    down = [True]
    receiver.answer = lambda _: 503 if down[0] else 200

    async def main() -> None:
        with capture_logs() as lines, alerts(Webhook(receiver.url)) as made:
            for number in range(5):
                made.dead_letter("g", "t.g.dlq", "c", lambda number=number: alert(number))  # type: ignore[misc]
            await until(lambda: len(receiver.got) >= 3)
            assert {json.loads(body)["dead_letter"]["offset"] for _, body in receiver.got} == {0}
            down[0] = False
            await until(lambda: made.results["g", "delivered"] == 5)
            assert [json.loads(body)["dead_letter"]["offset"] for _, body in receiver.got[-5:]] == [0, 1, 2, 3, 4]
            assert made.results == {("g", "delivered"): 5}
        assert "s3cret" not in json.dumps(lines, default=str)
        assert any("alert waits: webhook at 127.0.0.1" in line["event"] for line in lines)

    asyncio.run(main())


@pytest.mark.parametrize(("status", "posts"), [(400, 1), (404, 1), (302, 1), (307, 1), (429, 3), (500, 3)])
def test_what_a_receiver_refuses_for_good_is_not_sent_again(receiver: Receiver, status: int, posts: int) -> None:
    receiver.answer = lambda count: status if count < 3 else 200

    async def main() -> None:
        with alerts(Webhook(receiver.url)) as made:
            made.dead_letter("g", "t.g.dlq", "c", alert)
            await until(made.results.total)
            assert made.results == {("g", "failed" if posts == 1 else "delivered"): 1}
            assert len(receiver.got) == posts
            assert set(receiver.paths) == {"/hook/s3cret-path"}, "a redirect was followed"

    asyncio.run(main())


def test_it_is_given_up_after_a_while_and_the_next_one_goes_on(receiver: Receiver) -> None:
    receiver.answer = lambda _: 500
    policy = AlertPolicy(pause_s=0.02, pause_max_s=0.05, timeout_s=0.5, retry_for_s=0.3)

    async def main() -> None:
        with alerts(Webhook(receiver.url), policy) as made:
            made.dead_letter("g", "t.g.dlq", "c", alert)
            await until(lambda: made.results["g", "failed"] == 1)
            receiver.answer = lambda _: 200
            made.dead_letter("g", "t.g.dlq", "c", alert)
            await until(lambda: made.results["g", "delivered"] == 1)

    asyncio.run(main())


def test_a_full_queue_drops_and_counts_and_a_stop_has_a_deadline(receiver: Receiver) -> None:
    receiver.hold.clear()

    async def main() -> None:
        with (
            capture_logs() as lines,
            alerts(Webhook(receiver.url), AlertPolicy(queue=3, per_window=1_000, timeout_s=30)) as made,
        ):
            made.dead_letter("g", "t.g.dlq", "c", alert)
            await until(lambda: receiver.got)
            for _ in range(10):
                made.dead_letter("g", "t.g.dlq", "c", alert)
            assert made.results == {("g", "dropped"): 7}
            began = time.monotonic()
            await made.stop(0.3)
            assert time.monotonic() - began < 2 * PATIENCE
            assert made.results == {("g", "dropped"): 11}
        assert sum("dropped" in line["event"] for line in lines) == 11

    asyncio.run(main())


def test_a_stop_sends_what_is_there_and_the_summary(receiver: Receiver) -> None:
    async def main() -> None:
        policy = AlertPolicy(per_window=2, window_s=1_000)
        with alerts(Webhook(receiver.url), policy) as made:
            for number in range(9):
                made.dead_letter("g", "t.g.dlq", "c", lambda number=number: alert(number))  # type: ignore[misc]
            await made.stop(5)
            said = [json.loads(body) for _, body in receiver.got]
            assert [each["kind"] for each in said] == ["dead_letter", "dead_letter", "flood"]
            assert said[-1]["count"] == 7
            assert made.results == {("g", "delivered"): 3, ("g", "summarised"): 7}

    asyncio.run(main())


def test_plain_hooks_that_hang_hold_up_neither_the_loop_nor_the_end() -> None:
    forever = threading.Event()
    calls: list[int] = []

    def hangs(_alert: Any) -> None:
        calls.append(1)
        forever.wait(60)

    async def main() -> None:
        policy = AlertPolicy(timeout_s=-0.9, hook_tries=3, pause_s=0.01, per_window=100)
        with alerts(None, policy, (hangs,)) as made:
            for _ in range(3):
                made.dead_letter("g", "t.g.dlq", "c", alert)
            began = time.monotonic()
            await asyncio.sleep(0.01)
            assert time.monotonic() - began < 5
            await until(lambda: made.results["g", "failed"] == 3)
            assert len(calls) == THREADS_MAX, "no more threads than that"
        forever.set()

    asyncio.run(main())


def test_nothing_is_kept_where_nobody_listens() -> None:
    async def main() -> None:
        with alerts(None) as made:
            made.dead_letter("g", "t.g.dlq", "c", lambda: pytest.fail("built"))
            await asyncio.sleep(0)
            await made.stop(1)
            assert made.results == {}

    asyncio.run(main())


def test_an_alert_that_can_not_be_built_fails_alone(receiver: Receiver) -> None:
    async def main() -> None:
        with alerts(Webhook(receiver.url)) as made:
            made.dead_letter("g", "t.g.dlq", "c", lambda: 1 / 0)  # type: ignore[arg-type, return-value]
            made.dead_letter("g", "t.g.dlq", "c", lambda: alert(1, b"bytes \xff"))
            await until(lambda: made.results["g", "delivered"] == 1)
            assert made.results["g", "failed"] == 1

    asyncio.run(main())


def test_an_input_that_is_too_long_is_cut() -> None:
    said = alert(0, {"text": "x" * 100_000}).as_json()
    assert isinstance(said["input"], str)
    assert len(said["input"]) < INPUT_CHARS + 100
    assert "100012 characters" in said["input"]


@pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit, StopIteration])
@pytest.mark.parametrize("kind", ["async", "def"])
def test_a_hook_ends_neither_the_alerts_nor_the_worker(kind: str, error: type[BaseException]) -> None:
    """Cancelled from inside (what it awaited was), it ended the task that serves all hooks: nobody was told of anything any more."""
    told: list[str] = []

    def hook(got: Any) -> None:
        told.append(got.alert_id)
        if len(told) == 1:
            raise error

    async def coroutine(got: Any) -> None:
        hook(got)

    async def story() -> None:
        with alerts(None, hooks=[coroutine if kind == "async" else hook]) as made:
            for number in range(2):
                made.dead_letter("g", "t.g.dlq", "E", lambda number=number: alert(number))  # type: ignore[misc]
            await until(lambda: made.results["g", "delivered"] == 2, 5)
        assert told == ["t.g.dlq/0/0", "t.g.dlq/0/0", "t.g.dlq/0/1"], "the first one was tried again"

    asyncio.run(story())


def test_threads_that_can_not_be_started_do_not_count_as_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the process's limit of threads for a moment: four tries, and no plain hook or webhook was called until the next start."""
    told: list[str] = []
    tries: list[int] = []
    start = threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if thread.name == "pipeline-alert":
            tries.append(1)
            if len(tries) <= THREADS_MAX:
                raise RuntimeError("can't start new thread")
        start(thread)

    async def story() -> None:
        with alerts(None, replace(QUICK, hook_tries=THREADS_MAX + 1), [lambda got: told.append(got.alert_id)]) as made:
            made.dead_letter("g", "t.g.dlq", "E", alert)
            await until(lambda: bool(told), 5)

    monkeypatch.setattr(threading.Thread, "start", limited)
    asyncio.run(story())
