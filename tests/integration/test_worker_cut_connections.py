"""Answers that never come, on real Kafka behind a proxy that cuts: commits never overtake each other, and a producer that has died
for good is replaced without losing or reordering a hand-off."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.model.headers import decode
from tests.integration.commit_log import setbacks, stored_commits
from tests.integration.harness import GROUP, Scene, make_app, verdict
from tests.integration.kafka_proxy import (
    INIT_PRODUCER_ID,
    OFFSET_COMMIT,
    PRODUCE,
    KafkaProxy,
    Request,
    Verdict,
    proxied_broker,
)

pytestmark = [pytest.mark.first, pytest.mark.timeout(180)]
CLUSTER_AUTHORIZATION_FAILED, OUT_OF_ORDER_SEQUENCE_NUMBER = 31, 45


@pytest.fixture(scope="module")
def behind() -> Iterator[tuple[str, KafkaProxy]]:
    with proxied_broker() as (address, proxy):
        yield address, proxy


@pytest.fixture
def proxy(behind: tuple[str, KafkaProxy]) -> Iterator[KafkaProxy]:
    proxy = behind[1]
    proxy.seen.clear()
    yield proxy
    proxy.judge, proxy.rewrite = lambda _request: "pass", lambda _request, answer: answer


@pytest.fixture
def scene(behind: tuple[str, KafkaProxy], topic_name: str, tmp_path: Path) -> Iterator[Scene]:
    with Scene(behind[0], topic_name, tmp_path) as scene:
        yield scene


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_commits_never_overtake_each_other_when_connections_are_cut(
    scene: Scene, proxy: KafkaProxy, protocol: str
) -> None:
    """Every fourth commit loses its answer (the broker has stored it) or is lost itself, while thousands of records go through."""
    spec = scene.spec(
        settings={"group_protocol": protocol},
        tiers=("300ms", "600ms"),
        attempts=4,
        concurrency=40,
        flow={"commit_interval_ms": 20},
    )
    scene.make_topics(make_app(spec))
    worker = scene.start_and_wait(spec)
    numbers = itertools.count(1)
    fates: tuple[Verdict, ...] = ("pass", "pass", "pass", "lose answer", "pass", "pass", "pass", "lose request")

    def judge(request: Request) -> Verdict:
        return fates[next(numbers) % len(fates)] if request.kind == OFFSET_COMMIT else "pass"

    proxy.judge = judge
    records = [(f"k{n % 40}", {"sleep": 0.02, "fails": 1 + n % 2 if n % 61 == 0 else 0}) for n in range(3000)]

    def lost() -> tuple[int, int]:
        return proxy.seen[OFFSET_COMMIT, "lose answer"], proxy.seen[OFFSET_COMMIT, "lose request"]

    for _ in range(5):  # a slow machine makes fewer commits of the same records
        scene.publish_many(records)
        scene.until("all are done", lambda: len(set(scene.ledger.done())) == len(scene.published), 120)
        scene.until("all is committed", scene.settled, 30)
        if min(lost()) >= 3:
            break
    assert min(lost()) >= 3, f"too few commits were cut to show anything: {lost()}"
    commits = stored_commits(scene.bootstrap, scene.prefix + GROUP)
    print(f"{len(commits)} partition commits stored, {lost()} requests cut")
    assert setbacks(commits, scene.topic()) == []
    verdict(scene.ledger.marks(), scene.published, tier_s=0.3).check()
    assert scene.dead() == []
    assert worker.stop() == 0
    heir = scene.start_and_wait(spec)
    more = scene.publish_many([(f"k{n}", {}) for n in range(40)])
    scene.until("a later owner goes on", lambda: set(more) <= set(scene.ledger.done()))
    scene.until("all is committed", scene.settled)
    verdict(scene.ledger.marks(), scene.published, tier_s=0.3).check()
    assert heir.stop() == 0


def refuse_producer_id(request: Request, answer: bytes) -> bytes:
    """`CLUSTER_AUTHORIZATION_FAILED` for the producer's number: fatal for an idempotent producer of librdkafka."""
    at = 4 + (1 if request.version >= 2 else 0) + 4
    return answer[:at] + struct.pack(">h", CLUSTER_AUTHORIZATION_FAILED) + answer[at + 2 :]


def out_of_sequence(request: Request, topic: bytes, answer: bytes) -> bytes:
    """`OUT_OF_ORDER_SEQUENCE_NUMBER` for the first partition of the topic in a Produce answer that names the topic."""
    at = answer.index(topic) + len(topic) + (1 if request.version >= 9 else 4) + 4  # compact arrays since version 9
    return answer[:at] + struct.pack(">h", OUT_OF_ORDER_SEQUENCE_NUMBER) + answer[at + 2 :]


@pytest.mark.parametrize("dies", [1, 3])
def test_a_producer_that_dies_for_good_is_replaced(scene: Scene, proxy: KafkaProxy, dies: int) -> None:
    """The broker answers a hand-off as out of sequence: with no gaps allowed that ends librdkafka's producer for good (the broker
    has stored it all the same). Nothing is lost, nothing is run twice, order holds, and it is told."""
    settings = {"client": {"producer.enable.gapless.guarantee": "true"}}
    spec = scene.spec(settings=settings, tiers=("300ms",), attempts=4)
    scene.make_topics(make_app(spec))
    worker = scene.start_and_wait(spec)
    lane = scene.lane("retry.300ms")
    scene.publish("before", {"fails": 1})
    scene.until("the first producer has written", lambda: scene.count(lane) == 1)
    answers = list[int]()

    def rewrite(request: Request, answer: bytes) -> bytes:
        if request.client_id == "t" and request.kind == PRODUCE and lane.encode() in answer:
            answers.append(request.number)
            if len(answers) <= dies:
                return out_of_sequence(request, lane.encode(), answer)
        return answer

    proxy.rewrite = rewrite
    scene.publish_many([(f"k{n % 20}", {"fails": 1 if n < 20 else 0}) for n in range(200)])
    scene.until("all are done", lambda: len(set(scene.ledger.done())) == 201, 60)
    scene.until("all is committed", scene.settled)
    # A copy that is read back counts as written, so all may be done before the last hand-off is through.
    scene.until("a producer lives on", lambda: len(answers) > dies)
    told = [line for line in worker.log.read_text().splitlines() if "made anew" in line]
    print("\n".join(told))
    assert 1 <= len(told) <= dies
    verdict(scene.ledger.marks(), scene.published, tier_s=0.3).check()
    copies = {(c.origin_partition, c.origin_offset) for c in (decode(m.headers()) for m in scene.read(lane))}
    assert copies >= {(m.partition, m.offset) for m in scene.ledger.marks("fail")}
    assert scene.dead() == []
    scene.until(f"it is well again: {worker.status()}", lambda: worker.status()[0] == 200)
    assert worker.stop() == 0


def test_a_producer_that_can_not_even_begin_is_replaced(scene: Scene, proxy: KafkaProxy) -> None:
    """The very first requests for a number are refused, three times; nobody sends anything else meanwhile."""
    spec = scene.spec(tiers=("300ms",), attempts=4)
    scene.make_topics(make_app(spec))
    asked = itertools.count(1)

    def rewrite(request: Request, answer: bytes) -> bytes:
        if request.kind == INIT_PRODUCER_ID and request.client_id == "t" and next(asked) <= 3:
            return refuse_producer_id(request, answer)
        return answer

    proxy.rewrite = rewrite
    worker = scene.start_and_wait(spec)
    scene.publish_many([(f"k{n}", {"fails": 1}) for n in range(10)])
    scene.until("all are done", lambda: len(set(scene.ledger.done())) == 10, 60)
    scene.until("all is committed", scene.settled)
    assert next(asked) > 4
    verdict(scene.ledger.marks(), scene.published, tier_s=0.3).check()
    assert worker.stop() == 0
