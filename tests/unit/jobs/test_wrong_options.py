"""What a new user gets wrong in a declaration or a request is a sentence at the call, naming the option and what it must be."""

from __future__ import annotations

import asyncio
import sys
import typing
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest

from pipeline.app import Pipeline
from pipeline.background import ConsumeOptions, JobOptions, KafkaQueue, MemoryQueue, TaskWorker
from pipeline.jobs.topics import queues_on
from pipeline.kafka.schema_log import KafkaSchemaLog
from pipeline.model.background import job_options
from pipeline.model.errors import ConfigurationError, JobMissing, SchemaUnavailable
from pipeline.model.job_resources import JobResources
from pipeline.model.policies import Backoff
from pipeline.worker.declaring import Retries
from tests.unit.jobs.worlds import World, application, play


async def nothing(_given: Any) -> None: ...


def declared(**arguments: Any) -> None:
    application().job("j", **arguments)


def subscribed(**arguments: Any) -> None:
    application().subscribe("t", group="g", retries=Retries(**arguments))


def task_worker(**arguments: Any) -> None:
    TaskWorker(MemoryQueue(), options=ConsumeOptions(**arguments))


NO_EXCEPTIONS = [("ValueError",), ValueError, [ValueError], "ValueError", (ValueError("x"),), (int,), ((ValueError,),)]


@pytest.mark.parametrize("declare", [declared, subscribed, task_worker])
@pytest.mark.parametrize("terminal", NO_EXCEPTIONS, ids=str)
def test_a_terminal_that_is_no_tuple_of_exception_classes_is_refused_where_it_is_declared(
    declare: Callable[..., None], terminal: Any
) -> None:
    with pytest.raises(ConfigurationError, match=r"terminal=.* must be a tuple of exception classes, such as"):
        declare(terminal=terminal)


def kafka_queue(app: Pipeline) -> KafkaQueue:
    return KafkaQueue(app, create=None)


@pytest.mark.parametrize("made", [kafka_queue, lambda _app: MemoryQueue()], ids=["kafka", "memory"])
def test_a_consumer_with_a_name_as_terminal_is_refused(made: Callable[..., Any]) -> None:
    with pytest.raises(ConfigurationError, match="terminal="):
        asyncio.run(made(application()).consume("t", nothing, ConsumeOptions(terminal=("ValueError",))))  # type: ignore[arg-type]


WRONG_OF_A_TYPE = [
    ({"backoff": "1s"}, r"""backoff='1s' must be Exponential\("1s"\) or Fixed\("1s"\)"""),
    ({"backoff": 5}, "backoff=5 must be Exponential"),
    ({"backoff": Backoff("1s")}, "backoff=.* must have whole milliseconds"),  # type: ignore[arg-type]
    ({"backoff": Backoff(1, factor=True)}, "backoff=.* must have"),
    ({"batch": 10}, r"batch=10 must be Batch\(size=10\)"),
    ({"retention": 5}, r"retention=5 must be RetentionPolicy\(completed="),
    ({"retention": "7d"}, "retention='7d' must be RetentionPolicy"),
    ({"resources": {"memory": "1GiB"}}, r"""resources={'memory': '1GiB'} must be Resources\(memory="1GiB", cpu=1\)"""),
    ({"resources": JobResources(memory_bytes="1GiB")}, "memory_bytes='1GiB' must be a whole number"),  # type: ignore[arg-type]
    ({"jitter": "a little"}, "jitter='a little' must be a number between 0 and 1"),
    ({"jitter": True}, "jitter=True must be a number between 0 and 1"),
    ({"dead_letter": "no"}, "dead_letter='no' must be True or False"),
    ({"release_on_failure": 1}, "release_on_failure=1 must be True or False"),
    ({"queue": ""}, "queue='' must be a text of 1 to"),
    ({"queue": 5}, "queue=5 must be a text of 1 to"),
    ({"attempts": "3"}, "attempts='3' must be a whole number"),
    ({"timeout": True}, "timeout=True is not a duration"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG_OF_A_TYPE, ids=str)
def test_an_option_of_a_type_of_job_that_has_the_wrong_type_is_named_with_what_it_must_be(
    arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        declared(**arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"backoff": "1s"}, "backoff='1s' must be Exp"),
        ({"jitter": "x"}, "jitter='x' must"),
        ({"jitter": True}, "jitter=True"),
    ],
    ids=str,
)
def test_an_option_of_a_subscriptions_retries_that_has_the_wrong_type_is_named(
    arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        subscribed(**arguments)


@pytest.mark.parametrize("name", ["key", "dedup_id", "tenant", "workflow_id", "tags"])
def test_a_text_that_utf_8_does_not_have_is_refused_with_its_name(name: str) -> None:
    """A file's name that is not UTF-8 is such a text in Python."""
    with pytest.raises(ConfigurationError, match=rf"^{name}='a\\udcff' has characters that UTF-8 does not have"):
        job_options({name: ("a\udcff",) if name == "tags" else "a\udcff"})


def by_application(app: Pipeline, **options: Any) -> Coroutine[Any, Any, Any]:
    return app.enqueue("j", 1, **options)


def by_kafka_queue(app: Pipeline, **options: Any) -> Coroutine[Any, Any, Any]:
    return KafkaQueue(app).enqueue("j", 1, JobOptions(**options))


def by_topic(app: Pipeline, **options: Any) -> Coroutine[Any, Any, Any]:
    return KafkaQueue(app).enqueue("t", 1, JobOptions(**options))


def by_memory_queue(_app: Pipeline, **options: Any) -> Coroutine[Any, Any, Any]:
    return MemoryQueue().enqueue("j", 1, JobOptions(**options))


def by_schedule(app: Pipeline, **options: Any) -> Coroutine[Any, Any, Any]:
    return app.schedule("s", "j", 1, cron="0 * * * *", **options)


WAYS = [by_application, by_kafka_queue, by_topic, by_memory_queue, by_schedule]


def refused(ask: Callable[[Pipeline], Coroutine[Any, Any, Any]], said: str) -> None:
    app = application()
    app.job("j")(nothing)

    async def story(_world: World) -> None:
        with pytest.raises(ConfigurationError, match=said):
            await ask(app)

    play(app, story)


@pytest.mark.parametrize("ask", WAYS)
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"backoff": "1s"}, "backoff='1s' must be Exponential"),
        ({"tags": 5}, "tags=5 must be a sequence"),
        ({"tenant": 0}, "tenant=0 must be a text"),
        ({"priority": True}, "priority=True must be a whole number"),
    ],
    ids=str,
)
def test_an_option_of_a_request_that_has_the_wrong_type_is_named_whichever_way_it_is_asked(
    ask: Callable[..., Coroutine[Any, Any, Any]], options: dict[str, Any], said: str
) -> None:
    refused(lambda app: ask(app, **options), said)


@pytest.mark.parametrize("topic", ["j", "t"])
@pytest.mark.parametrize("options", [{"priority": 1}, {}, "urgent"], ids=str)
def test_a_dict_for_the_options_of_a_request_is_refused_by_both_queues(topic: str, options: Any) -> None:
    said = r"options=.* must be JobOptions\("
    refused(lambda app: KafkaQueue(app).enqueue(topic, 1, options), said)
    refused(lambda _app: MemoryQueue().enqueue(topic, 1, options), said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"attempts": 3}, r"options=.* must be ConsumeOptions\("),
        (ConsumeOptions(concurrency="5"), "concurrency='5' must be a whole number"),  # type: ignore[arg-type]
        (ConsumeOptions(backoff="1s"), "backoff='1s' must be Exponential"),  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_options_of_a_consumer_that_have_the_wrong_type_are_refused_by_both_queues(options: Any, said: str) -> None:
    refused(lambda app: KafkaQueue(app).consume("t", nothing, options), said)
    refused(lambda _app: MemoryQueue().consume("t", nothing, options), said)


def test_a_task_worker_refuses_a_dict_for_its_options() -> None:
    with pytest.raises(ConfigurationError, match=r"options=.* must be ConsumeOptions\("):
        TaskWorker(MemoryQueue(), options={"attempts": 3})  # type: ignore[arg-type]


def test_a_queue_without_a_name_is_refused_wherever_it_is_named() -> None:
    for name in (lambda app: app.queue(""), lambda app: app.desk("")):
        with pytest.raises(ConfigurationError, match="queue='' must be a text"):
            name(application())
    assert queues_on(["jobs.", "jobs.q", "jobs.q.q.state"]) == ["q"]


@pytest.mark.parametrize("secret", ["", b"s", 5], ids=str)
def test_an_empty_secret_of_a_webhook_is_no_wish_for_unsigned_posts(secret: Any) -> None:
    app = application()
    with pytest.raises(
        ConfigurationError, match="secret of webhook 'crm' must be a text that is not empty: leave it out"
    ):
        app.webhook("crm", "https://crm.example", secret=secret)
    app.webhook("crm", "https://crm.example")


def test_an_annotation_that_pydantic_refuses_is_a_sentence_too() -> None:
    class Row(typing.TypedDict):
        x: int

    def handler(_row: Any) -> None: ...

    handler.__annotations__["_row"] = Row
    if sys.version_info >= (3, 12):
        application().job("j")(handler)
        return
    with pytest.raises(ConfigurationError, match="typing_extensions before Python"):
        application().job("j")(handler)


def test_a_job_that_is_asked_for_while_the_broker_is_away_is_told_so_with_its_address() -> None:
    log = KafkaSchemaLog({"bootstrap.servers": "127.0.0.1:1"}, "_pipeline.schemas", timeout_s=0.5)
    with pytest.raises(SchemaUnavailable, match=r"^No broker answers at 127\.0\.0\.1:1, .* and PIPELINE_BROKER\.$"):
        log.read(0)


def test_exception_classes_are_taken_as_terminal() -> None:
    for declare in (declared, subscribed, task_worker):
        declare(terminal=(ValueError, KeyError))
        declare(terminal=())


@pytest.mark.parametrize("wrong", ["\udcff", 7, [], object()], ids=lambda wrong: type(wrong).__name__)
def test_an_id_a_key_or_a_name_that_no_topic_takes_is_a_sentence_and_none_that_nobody_has_is_an_error_of_another_kind(
    wrong: Any,
) -> None:
    app = application()
    app.job("j")(nothing)

    async def story(world: World) -> None:
        await world.start(app)
        desk, made = app.desk(), (await app.enqueue("j", 1, delay="1h")).id
        asked: list[Callable[[], Any]] = [
            *(partial(each, "j", wrong) for each in (app.cancel, app.run_now, app.retry)),
            lambda: app.job_handle("j", wrong).status(),
            partial(app.cancel, "j", made, key=wrong or object()),
            partial(app.cancel, "j", made, reason=wrong),
            *(partial(each, wrong) for each in (desk.job, desk.why, desk.cancel, desk.retry, desk.run_now)),
            *(partial(desk.cancel, each, reason=wrong) for each in (made, made[:-1] + "x")),
            partial(desk.cancel, "nobody's", key=wrong or object()),
            *(partial(each, wrong) for each in (desk.pause_schedule, desk.remove_schedule, desk.run_schedule_now)),
        ]
        for ask in asked:
            with pytest.raises(ConfigurationError, match=r"(job_id|key|name|reason)=.* (must be a text|UTF-8)"):
                await ask()
        with pytest.raises(JobMissing):
            await app.job_handle("j", "a\0b").status()

    play(app, story)
