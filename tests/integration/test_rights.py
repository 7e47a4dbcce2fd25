"""The guide says which rights each role needs: here they get those and no others, on a Kafka that enforces them; and then all but one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AclOperation

from tests.integration.guarded import (
    EXACTLY_ONCE,
    PAGE,
    PATIENCE_S,
    ROLES,
    GuardedBroker,
    Person,
    Rights,
    publish,
    rows,
)
from tests.integration.harness import until

pytestmark = pytest.mark.first

CHARGES = 2


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    with GuardedBroker() as broker:
        Rights(broker.bootstrap)
        deployer = Person(broker.bootstrap, "deployer")
        for words in (
            ("topics", "apply", "billing:app", "--partitions", "2"),
            ("schemas", "register", "agent.run.events"),
        ):
            code, out, err = deployer.does("pipeline", *words)
            assert code == 0, out + err
        yield broker.bootstrap


def denied(said: str, name: str) -> bool:
    """Is there a line that names the topic or group (not another that begins like it) as what there is no right to?"""
    whole = re.compile(rf"(?<![\w.]){re.escape(name)}(?![\w.]*\w)")
    return any("not authorized" in line and whole.search(line) for line in said.splitlines())


def test_the_table_is_read() -> None:
    found = rows()
    assert {role for role, *_ in found} == set(ROLES)
    assert len(found) == len(re.findall(r"^\| (?:deployer|agent|worker|operator) \|", PAGE.read_text("utf-8"), re.M))


@pytest.mark.timeout(240)
def test_each_role_can_do_its_work_and_no_more(guarded: str) -> None:
    """The deployer did his already."""
    agent, worker, operator = (Person(guarded, role) for role in ROLES[1:])

    code, out, err = agent.does("support_bot.py")
    assert code == 0, err
    assert "not delivered" not in err, err
    last_run = out.split()[-1]

    working = worker.start("pipeline", "run", "billing:app")
    try:

        def booked() -> bool:
            code, out, _ = Person(guarded, "admin").does("pipeline", "groups", "lag", "books", "--json")
            # Two runs with keys of their own: they may share a partition or not.
            return code == 0 and sum(map(int, re.findall(r'"committed": (\d+)', out))) == CHARGES

        until("the charges are booked", booked, PATIENCE_S, lambda: (working.poll() and working.communicate()[1]) or "")
        for words, expected in (
            (("groups", "lag", "billing", "--json"), '"dead_letters": 1'),
            (("why", last_run, "--group", "billing"), "there is no price for model gpt-next"),
            (("tail", "agent.run.events", "--from", "earliest", "--no-follow", "--type", "ModelCall"), "gpt-large"),
            (("pause", "billing", "--why", "to see"), "is paused"),
            (("resume", "billing"), "goes on"),
        ):
            code, out, err = operator.does("pipeline", *words)
            assert code == 0, f"{words}: {out}{err}"
            assert expected in out, f"{words}: {out}{err}"
    finally:
        working.terminate()
        _, log = working.communicate(timeout=PATIENCE_S)
    assert working.returncode == 0, log
    assert "uthoriz" not in log, log

    code, out, err = agent.does("pipeline", "tail", "agent.run.events", "--from", "earliest", "--no-follow")
    assert code == 1, out + err
    assert not out, "an agent can read"
    assert denied(err, "agent.run.events"), err
    code, out, err = agent.does("pipeline", "pause", "billing")
    assert code == 2, out + err
    assert "'billing' has no lanes on this cluster that you may see" in err, err
    code, out, err = worker.does("support_bot.py")
    assert "not delivered" in err, "a worker can write to its source"
    assert denied(err, "agent.run.events"), err


IN_TRANSACTIONS = """
from typing import Any
from pipeline import Context, FlowPolicy, Pipeline

app = Pipeline("billing")

@app.subscribe("agent.run.events", group="billing", value="bytes", delivery="exactly_once", tiers=("10s", "30s", "2m", "10m"),
               flow=FlowPolicy(transaction_timeout_ms=5000))
async def bill(event: bytes, ctx: Context) -> None:
    ctx.emit("billing.charges", ctx.key, {"of": ctx.offset})
"""


@pytest.mark.timeout(240)
def test_exactly_once_needs_the_right_to_its_transactional_ids(guarded: str, tmp_path: Path) -> None:
    """Without it the worker says what is missing; with it, it works."""
    (tmp_path / "transactions.py").write_text(IN_TRANSACTIONS)
    worker, admin = Person(guarded, "worker"), Person(guarded, "admin")
    worker.environment["PYTHONPATH"] += os.pathsep + str(tmp_path)
    code, _, err = Person(guarded, "agent").does("support_bot.py")
    assert code == 0, err

    def charged() -> int:
        _, out, _ = admin.does("pipeline", "tail", "billing.charges", "--from", "earliest", "--no-follow", "--json")
        return out.count('"of":')

    def run_until(what: str, condition: Callable[[str], object]) -> str:
        log = tmp_path / f"{what}.log"
        with log.open("w") as into:
            working = worker.start("pipeline", "run", "transactions:app", log=into)
            try:
                until(what, lambda: condition(log.read_text()), PATIENCE_S, log.read_text)
            finally:
                working.terminate()
                working.wait(PATIENCE_S)
        return log.read_text()

    run_until("it says what is missing", lambda log: "ransactional Id authorization failed" in log)
    assert not charged(), "something was written without the right"
    Rights(guarded, EXACTLY_ONCE)
    assert "uthoriz" not in run_until("records are charged in transactions", lambda _: charged())


# -- all but one

READ, WRITE, CREATE, DESCRIBE = (getattr(AclOperation, name) for name in ("READ", "WRITE", "CREATE", "DESCRIBE"))
SOURCE, LANES = "agent.run.events", "agent.run.events.billing."

ONE_TIER = """
import os
from pipeline import Context, Pipeline, Retry

app = Pipeline("billing")

@app.subscribe("agent.run.events", group="billing", value="bytes", tiers=("300ms",), attempts=3)
async def bill(event: bytes, ctx: Context) -> None:
    if event == b"fails" and ctx.attempt == 1:
        raise Retry("the record says so")
    with open(os.environ["DONE"], "ab", buffering=0) as done:
        done.write(b"%d " % ctx.offset)
"""


def one_tier(guarded: str, role: str, folder: Path, prefix: str) -> Person:
    """Somebody in an environment of his own, with that application."""
    (folder / "one_tier.py").write_text(ONE_TIER)
    person = Person(guarded, role)
    person.environment |= {"PIPELINE_PREFIX": prefix, "DONE": str(folder / "done")}
    person.environment["PYTHONPATH"] += os.pathsep + str(folder)
    return person


@pytest.mark.timeout(240)
def test_a_deployer_who_may_not_create_a_topic_is_told_which(guarded: str, tmp_path: Path) -> None:
    rights, deployer = Rights(guarded, prefix="d.", roles=("deployer",)), one_tier(guarded, "deployer", tmp_path, "d.")
    words = ("pipeline", "topics", "apply", "one_tier:app", "--partitions", "1")
    for name, topic in ((SOURCE, "d.agent.run.events"), (LANES, "d.agent.run.events.d.billing.retry.300ms")):
        rights.take("deployer", name, CREATE)
        code, out, err = deployer.does(*words)
        assert code == 1, out + err
        assert denied(err, topic), err
        assert "Traceback" not in err, err
        rights.give("deployer", name, CREATE)
    code, out, err = deployer.does(*words)
    assert code == 0, out + err


@pytest.mark.timeout(240)
def test_a_worker_without_a_right_says_which_and_goes_on_once_it_has_it(guarded: str, tmp_path: Path) -> None:
    """Three are missing when it starts, and are given one after the other; one is taken while it works."""
    rights, worker = (
        Rights(guarded, prefix="w.", roles=("deployer", "worker")),
        one_tier(guarded, "worker", tmp_path, "w."),
    )
    applied = one_tier(guarded, "deployer", tmp_path, "w.").does(
        "pipeline", "topics", "apply", "one_tier:app", "--partitions", "1"
    )
    assert applied[0] == 0, applied
    source, tier = "w.agent.run.events", "w.agent.run.events.w.billing.retry.300ms"
    publish(guarded, source, b"fails", b"behind it", b"and again")
    log, done = tmp_path / "log", tmp_path / "done"
    done.touch()
    missing = (("billing", "w.billing", READ), (SOURCE, source, READ), (LANES, tier, WRITE))
    for name, _, right in missing:
        rights.take("worker", name, right)
    with log.open("w") as into:
        working = worker.start("pipeline", "run", "one_tier:app", log=into)

    def wait(what: str, condition: Callable[[str], object]) -> None:
        until(what, lambda: condition(log.read_text()) or working.poll() is not None, PATIENCE_S, log.read_text)
        assert working.poll() is None, log.read_text()

    try:
        for name, said, right in missing:
            wait(f"it says that it has no right to {said}", lambda log, said=said: denied(log, said))
            assert not done.read_text(), "it did what it has no right to"
            rights.give("worker", name, right)
        wait("all are done", lambda _: len(done.read_text().split()) >= 3)
        began = len(log.read_text())  # it may hear of it before the next line of this test
        rights.take("worker", SOURCE, READ)
        publish(guarded, source, b"later", b"fails")
        wait("it says what it lost", lambda log: denied(log[began:], source))
        rights.give("worker", SOURCE, READ)
        wait("the rest is done", lambda _: len(done.read_text().split()) >= 5)
    finally:
        working.terminate()
        working.wait(PATIENCE_S)
    assert working.returncode == 0, log.read_text()
    assert done.read_text().split() == list("01234"), "lost, repeated, or not in order"
    assert "Traceback" not in log.read_text()

    rights.take("worker", SOURCE, READ, DESCRIBE)
    code, out, err = worker.does("pipeline", "run", "one_tier:app")
    assert code == 1, out + err
    assert denied(err, source), f"a topic that it may not see is not one that does not exist: {err}"
    assert "Traceback" not in err, err


WAITING_AGENT = """
import asyncio, time
from pipeline import Pipeline
from pipeline.emit.recorder import Recorder

publisher = Pipeline("support").publisher()
with Recorder(publisher) as recorder:
    with recorder.run(agent="support", tenant="acme"):
        pass
    while publisher.stats().delivered < 2:
        time.sleep(0.02)
print("all delivered")
"""


@pytest.mark.timeout(240)
def test_an_agent_without_the_right_to_write_says_so_and_loses_nothing(guarded: str, tmp_path: Path) -> None:
    """It may write nowhere then, and Kafka denies it the id that idempotent producers need, without naming a topic."""
    rights, agent, log = Rights(guarded), Person(guarded, "agent"), tmp_path / "log"
    rights.take("agent", SOURCE, WRITE)
    event = tmp_path / "event.jsonl"
    event.write_text(
        '{"type": "Message", "run_id": "r", "agent": "a", "tenant": "t", "role": "USER", "content": "hello"}\n'
    )
    with event.open() as typed:
        emitting = agent.start("pipeline", "emit", typed=typed)
        out, err = emitting.communicate(timeout=PATIENCE_S)
    assert emitting.returncode == 1, out + err
    assert denied(err, SOURCE), err
    assert "Traceback" not in err, err

    (tmp_path / "waiting_agent.py").write_text(WAITING_AGENT)
    with log.open("w") as into:
        process = agent.start(str(tmp_path / "waiting_agent.py"), log=into)
    try:
        until("it says what is missing", lambda: denied(log.read_text(), SOURCE), PATIENCE_S, log.read_text)
        assert process.poll() is None, log.read_text()
        rights.give("agent", SOURCE, WRITE)
        assert process.wait(PATIENCE_S) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
    assert "all delivered" in log.read_text()
    assert "not delivered" not in log.read_text()
    assert "Traceback" not in log.read_text()
