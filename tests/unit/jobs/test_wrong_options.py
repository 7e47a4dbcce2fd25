"""What a new user gets wrong in a declaration or a request is a sentence at the call, naming the option and what it must be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.app import Pipeline
from pipeline.background import ConsumeOptions, KafkaQueue, MemoryQueue, TaskWorker
from pipeline.model.errors import ConfigurationError
from pipeline.worker.declaring import Retries
from tests.unit.jobs.worlds import application


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


def test_exception_classes_are_taken_as_terminal() -> None:
    for declare in (declared, subscribed, task_worker):
        declare(terminal=(ValueError, KeyError))
        declare(terminal=())
