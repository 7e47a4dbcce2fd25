"""A result is what its handler declares, at the worker and at the caller; what is not is said in one sentence, and ends the job."""

from __future__ import annotations

import enum
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel
from typing_extensions import TypedDict

from pipeline import Settings
from pipeline.app import Pipeline
from pipeline.background import KafkaQueue
from pipeline.jobs.handle import JobHandle
from pipeline.model.errors import JobUnsuccessful, UndecodableError
from pipeline.model.job_policies import JobPolicy
from pipeline.model.job_types import JobType
from pipeline.model.outcome import Failure, FailureKind, Warn
from pipeline.worker.jobs.values import dump_of
from tests.unit.jobs.worlds import World, application, play


class Label(BaseModel):
    label: str


class Scored(Label):
    score: float = 0.5


class Nested(BaseModel):
    inner: Label


@dataclass
class Point:
    x: int


class Row(TypedDict):
    x: int


class Pair(NamedTuple):
    x: int
    y: int


class Colour(enum.Enum):
    RED = "red"


def dumped(gives: object, returned: object) -> bytes | Failure:
    return dump_of(JobType("j", lambda _given: None, JobPolicy(), gives=gives))(returned)


@pytest.mark.parametrize(
    ("gives", "returned", "json"),
    [
        (Label, Label(label="a"), b'{"label":"a"}'),
        (Label, Scored(label="a"), b'{"label":"a"}'),
        (Nested, Nested(inner=Scored(label="a")), b'{"inner":{"label":"a"}}'),
        (list[Label], [Scored(label="a")], b'[{"label":"a"}]'),
        (Label | None, Label(label="a"), b'{"label":"a"}'),
        (Label | Point, Point(1), b'{"x":1}'),
        (Point, Point(1), b'{"x":1}'),
        (Row, {"x": 1}, b'{"x":1}'),
        (Pair, Pair(1, 2), b"[1,2]"),
        (Colour, Colour.RED, b'"red"'),
        (type(None), None, b"null"),
        (Any, {"a": [1, Label(label="a")]}, b'{"a":[1,{"label":"a"}]}'),
        (object, 5, b"5"),
        (float, 1, b"1.0"),
        (Sequence[int], (1, 2), b"[1,2]"),
        # not of the type itself, and read as it all the same
        (Label, {"label": "a"}, b'{"label":"a"}'),
        (Point, {"x": 1}, b'{"x":1}'),
        (list[int], (1, 2), b"[1,2]"),
        (int, 1.0, b"1.0"),
        (Colour, "red", b'"red"'),
        (datetime, "2026-01-31T12:00:00Z", b'"2026-01-31T12:00:00Z"'),
        (Iterable[int], [1], b"[1]"),
        (dict[str, Any], Label(label="a"), b'{"label":"a"}'),
    ],
    ids=str,
)
def test_what_fits_the_declared_result_is_a_result(gives: object, returned: object, json: bytes) -> None:
    assert dumped(gives, returned) == json


@pytest.mark.parametrize(
    ("gives", "returned", "said"),
    [
        (Label, {"label": 5}, "j returned dict, which does not fit the result that it declares: label: Input should"),
        (Label, "a", "j returned str, which does not fit the result that it declares: it: Input should"),
        (Nested, {"inner": {}}, "inner.label: Field required"),
        (Label, Label.model_construct(label=5), "label: Input should"),  # type: ignore[arg-type]
        (Row, {"x": "many"}, "x: Input should be a valid integer"),
        (type(None), 5, "it: Input should be null"),
        (int | None, "five", "does not fit"),
        (list[int], (n for n in range(3)), "returned an iterator where it declares something else: return a list"),
        (Row, {"x": map(int, "12")}, "returned an iterator"),
        (Any, {"lock": object()}, "which has no JSON form"),
    ],
    ids=lambda given: re.sub(r"0x[0-9a-f]+", "", str(given)),  # where an object lies differs between processes
)
def test_what_does_not_fit_the_declared_result_is_a_bad_result_and_no_attempt_changes_it(
    gives: object, returned: object, said: str
) -> None:
    failure = dumped(gives, returned)
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.error_class) == (FailureKind.TERMINAL, "BadResult")
    assert said in failure.message
    assert "secret" not in dumped(Label, {"label": ["secret"]}).message  # type: ignore[union-attr]


def returns(app: Pipeline, name: str, gives: object, returned: object) -> None:
    async def handler(_given: None) -> Any:
        return returned

    handler.__annotations__["return"] = gives
    app.job(name)(handler)


def test_a_job_whose_result_does_not_fit_is_given_up_as_a_bad_result_and_others_complete() -> None:
    app = application()
    returns(app, "bad", Label, {"label": 5})
    returns(app, "good", Label, {"label": "a"})
    returns(app, "warned", Label | Warn, Warn("half of it"))
    returns(app, "nothing", type(None), None)

    async def story(world: World) -> None:
        await world.start(app)
        with pytest.raises(JobUnsuccessful, match="bad returned dict, which does not fit the result") as caught:
            await (await app.enqueue("bad")).result("10s")
        assert (caught.value.state, caught.value.error_class) == ("dead_letter", "BadResult")
        assert await (await app.enqueue("good")).result("10s") == Label(label="a")
        assert await (await app.enqueue("warned")).result("10s") is None
        assert await (await app.enqueue("nothing")).result("10s") is None

    play(app, story)


def by_request(handle: JobHandle, _caller: Pipeline) -> JobHandle:
    return handle


def by_id(handle: JobHandle, caller: Pipeline) -> JobHandle:
    return caller.job_handle("j", handle.id)


@pytest.mark.parametrize("reached", [by_request, by_id])
def test_a_result_that_does_not_fit_what_the_caller_declares_is_an_error_of_the_tree(
    reached: Callable[[JobHandle, Pipeline], JobHandle],
) -> None:
    app, caller = application(), application("caller")
    returns(app, "j", Label, Label(label="a"))
    returns(caller, "j", list[int], None)

    async def story(world: World) -> None:
        await world.start(app)
        asked = await caller.enqueue("j")
        with pytest.raises(
            UndecodableError, match=f"the result of job {asked.id} does not fit what j declares here: it:"
        ):
            await reached(asked, caller).result("10s")
        caller.jobs.close()

    play(app, story)


def test_threads_that_ask_for_jobs_first_at_the_same_time_share_one_producer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each made one, and `close` knew the last."""
    app, made = application(), list[str]()
    returns(app, "j", int, 1)

    async def story(world: World) -> None:
        of_cluster = world.cluster.producer

        def slowly(client_id: str) -> Any:
            time.sleep(0.2)
            made.append(client_id)
            return of_cluster(client_id)

        monkeypatch.setattr(world.cluster, "producer", slowly)
        assert app.jobs is app.jobs
        callers = [threading.Thread(target=app.enqueue_sync, args=("j",)) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert made == ["app.jobs"]

    play(app, story)


def test_threads_that_are_the_first_share_one_client_one_desk_and_one_declaration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each made its own, of which `stop` closed the last; a second declaration of a topic was an error."""
    app = Pipeline("app", settings=Settings(broker="memory://first-use"))
    queue = KafkaQueue(app, create=None)
    beginning = threading.Barrier(4)

    def slowly(owner: Any, name: str) -> None:
        slow = getattr(owner, name)

        def after_a_moment(*arguments: Any) -> Any:
            time.sleep(0.1)
            return slow(*arguments)

        monkeypatch.setattr(owner, name, after_a_moment)

    for owner, name in ((app, "_job_client"), (app, "_kept_ms"), (queue._queues, "add")):
        slowly(owner, name)

    def use() -> tuple[Any, Any]:
        beginning.wait(5)
        queue._declare("t")
        return app.jobs, app.desk()

    with ThreadPoolExecutor(4) as threads:
        found = [each.result() for each in [threads.submit(use) for _ in range(4)]]
    assert len(set(found)) == 1
    app.close_desks()
    app.jobs.close()
