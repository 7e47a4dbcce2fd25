"""The guide says which rights each role needs: here they get those and no others, on a Kafka that enforces them; and then all but one."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
    found, all_roles = rows(), "|".join(ROLES).replace("-", " ")
    assert {role for role, *_ in found} == set(ROLES)
    assert len(found) == len(re.findall(rf"^\| (?:{all_roles}) \|", PAGE.read_text("utf-8"), re.M))


@pytest.mark.timeout(240)
def test_each_role_can_do_its_work_and_no_more(guarded: str) -> None:
    """The deployer did his already."""
    agent, worker, operator = (Person(guarded, role) for role in ("agent", "worker", "operator"))

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

READ, WRITE, CREATE, DESCRIBE, DELETE = (
    getattr(AclOperation, name) for name in ("READ", "WRITE", "CREATE", "DESCRIBE", "DELETE")
)
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


# -- those who repair, and background jobs


def well(person: Person, *words: str) -> str:
    """A command that goes through; what it printed."""
    code, out, err = person.does("pipeline", *words)
    assert code == 0, f"{words}: {out}{err}"
    return out


def refused(person: Person, name: str, *words: str) -> None:
    """A command that says in a sentence what there is no right to."""
    code, out, err = person.does("pipeline", *words)
    assert code == 1, f"{words}: {out}{err}"
    assert denied(err, name), f"{words}: {out}{err}"
    assert "Traceback" not in err, err


def at_desk(guarded: str, role: str, folder: Path) -> Person:
    """Somebody whose indexes are in this folder."""
    person = Person(guarded, role)
    person.environment["PIPELINE_STATE_DIR"] = str(folder / role)
    return person


REASON = ("--yes", "--reason", "to see")


@pytest.mark.timeout(240)
def test_a_repairer_can_act_and_an_operator_can_not(guarded: str, tmp_path: Path) -> None:
    rights, here = Rights(guarded), ("--group", "billing")
    operator, repairer = at_desk(guarded, "operator", tmp_path), at_desk(guarded, "repairer", tmp_path)

    def dlq(action: str, *words: str) -> tuple[str, ...]:
        return "dlq", action, *words, *here, *REASON

    def letters(calls: bool) -> list[str]:
        """Positions of those that are open: of model calls, or of what is no event."""
        found = json.loads(well(operator, "dlq", "list", *here, "--json"))["dead_letters"]
        return [each["position"] for each in found if ("gpt-next" in json.dumps(each)) == calls]

    plans = iter(tmp_path / f"plan-{number}.json" for number in range(9))

    def plan() -> str:
        path = str(next(plans))
        well(operator, "replay", "plan", "--topic", SOURCE, *here, "--last", "1d", "--limit", "2", "--out", path)
        return path

    log = tmp_path / "log"
    with log.open("w") as into:
        working = Person(guarded, "worker").start("pipeline", "run", "billing:app", log=into)
    try:
        for _ in range(4):
            code, _, err = Person(guarded, "agent").does("support_bot.py")
            assert code == 0, err
        publish(guarded, SOURCE, *4 * [b"no event"])
        until("all have died", lambda: min(len(letters(True)), len(letters(False))) >= 4, PATIENCE_S, log.read_text)
    finally:
        working.terminate()
        working.wait(PATIENCE_S)

    oldest, next_one, *_ = sorted(letters(True) + letters(False), key=lambda place: [*map(int, place.split(":"))])
    rights.take("repairer", "agent.run.events.billing.dlq", DELETE)
    done = json.loads(well(repairer, *dlq("purge", oldest), "--json"))
    assert denied(done["details"]["problem"], "agent.run.events.billing.dlq"), done
    rights.give("repairer", "agent.run.events.billing.dlq", DELETE)
    done = json.loads(well(repairer, *dlq("purge", next_one), "--json"))
    assert done["details"]["deleted"] >= 1, done

    before = letters(True), letters(False)
    (call, other, *_), (junk, *_) = before
    for name, right, words in (
        ("_pipeline.audit", WRITE, dlq("cancel", junk)),
        ("_pipeline.replay.results", WRITE, dlq("cancel", junk)),
        ("_pipeline.tasks", WRITE, dlq("convert", other, "--to", "ana", "--task", "book it")),
        ("agent.run.events.billing.replay", WRITE, dlq("redrive", other, "--canary", "0")),
        ("pipeline.replay.", READ, dlq("redrive", other, "--canary", "0")),
        ("billing", READ, ("groups", "reset", "billing", "--topic", SOURCE, "--to-latest", "--execute", *REASON[1:])),
    ):
        rights.take("repairer", name, right)
        said = "pipeline.replay.redrive.agent.run.events.billing.dlq" if name == "pipeline.replay." else name
        refused(repairer, said, *words)
        rights.give("repairer", name, right)
    refused(operator, "_pipeline.audit", *dlq("cancel", junk))
    assert (letters(True), letters(False)) == before, "something was done without the right"

    well(repairer, *dlq("cancel", junk))
    well(repairer, *dlq("convert", other, "--to", "ana", "--task", "book it"))
    value = json.loads(well(repairer, "dlq", "show", call, *here, "--json"))[0]["value"]
    new = tmp_path / "value.json"
    new.write_text(json.dumps({**value, "model": "gpt-small"}))
    edited = json.loads(well(repairer, *dlq("edit", call, "--value", str(new)), "--json"))["details"]["position"]
    assert "1 written" in well(repairer, *dlq("redrive", edited, "--canary", "0"))
    run, held = plan(), plan()
    assert "2 written" in well(repairer, "replay", "run", run, *REASON)
    assert "finished" in well(operator, "replay", "status", run)
    for action in ("pause", "resume", "cancel"):
        well(repairer, "replay", action, held, *REASON[1:])
    assert "redrive" in well(operator, "replay", "list")
    moved = well(repairer, "groups", "reset", "billing", "--topic", SOURCE, "--to-latest", "--execute", *REASON[1:])
    assert "moved" in moved
    assert "audit starts" in well(repairer, "groups", "attach", "audit", "--topic", SOURCE, *REASON[1:])


TICKETS, MODELS = "support_tickets:app", ("--queue", "models")
TICKET = '{"id": "%s", "tenant": "acme", "text": "Where is my refund?"}'


@pytest.fixture(scope="module")
def queues(guarded: str) -> str:
    """The queues of the tickets, and their contracts by the guide's words."""
    deployer = Person(guarded, "deployer")
    well(deployer, "topics", "apply", TICKETS, "--partitions", "1")
    registers = re.findall(r"^pipeline (schemas register jobs\.models.*)$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(registers) == 2
    for words in registers:
        for queue in ("models", "steps"):
            well(deployer, *words.replace("models", queue).split())
    return guarded


@pytest.mark.timeout(240)
def test_jobs_are_asked_for_done_and_operated_with_these_rights(queues: str, tmp_path: Path) -> None:
    rights, worker = Rights(queues), Person(queues, "job-worker")
    caller, operator = at_desk(queues, "caller", tmp_path), at_desk(queues, "job-operator", tmp_path)
    worker.environment["PIPELINE_PERMISSIONS"] = "articles:read"

    def ask(person: Person, number: int) -> str:
        said = well(person, "jobs", "enqueue", TICKETS, "classify", TICKET % number, "--delay", "1h")
        return said.split()[0]

    def becomes(job: str, state: str) -> None:
        def shown() -> Any:
            code, out, _ = operator.does("pipeline", "jobs", "show", job, *MODELS, "--json")
            return code == 0 and f'"{state}"' in out

        until(f"{job} is {state}", shown, PATIENCE_S, log.read_text)

    log = tmp_path / "log"
    rights.take("job-worker", "models", READ)
    with log.open("w") as into:
        working = worker.start("pipeline", "run", TICKETS, log=into)
    try:
        until("it says what is missing", lambda: denied(log.read_text(), "models"), PATIENCE_S, log.read_text)
        rights.give("job-worker", "models", READ)
        code, out, err = caller.does("support_tickets.py")
        assert code == 0, err
        first = out.split()[0]
        assert "0.9" in out, out

        one, two = ask(caller, 1), ask(operator, 2)
        becomes(two, "scheduled")
        for person, name, right, words in (
            (caller, "jobs.models", WRITE, ("enqueue", TICKETS, "classify", TICKET % 3)),
            (caller, "jobs.models.models.state", READ, ("result", first, *MODELS)),
            (operator, "jobs.models", WRITE, ("cancel", two, *MODELS)),
            (operator, "models", DESCRIBE, ("stats", *MODELS)),
        ):
            role = person.environment["PIPELINE_USERNAME"]
            rights.take(role, name, right)
            refused(person, name, "jobs", *words)
            rights.give(role, name, right)
        code, out, err = caller.does("pipeline", "run", TICKETS)
        assert code == 1, f"a caller can work on jobs: {out}{err}"
        assert denied(err, "jobs.models.models.dlq"), err

        for words in (
            ("list",),
            ("stats",),
            ("health",),
            ("why", two),
            ("result", first),
            ("tail", "--last", "1h", "--limit", "1"),
        ):
            well(operator, "jobs", *words, *MODELS)
        well(operator, "jobs", "run-now", one, *MODELS)
        well(operator, "jobs", "cancel", two, *MODELS)
        becomes(one, "completed")
        becomes(two, "cancelled")
        well(operator, "jobs", "retry", two, *MODELS)
        becomes(two, "completed")

        cron = ("--cron", "0 9 * * *")
        well(operator, "schedules", "add", TICKETS, "morning", "classify", TICKET % 4, *cron)
        until("it is there", lambda: "morning" in well(operator, "schedules", "list", *MODELS), PATIENCE_S)
        for action in ("pause", "resume", "run-now", "remove"):
            well(operator, "schedules", action, "morning", *MODELS)
    finally:
        working.terminate()
        working.wait(PATIENCE_S)
    assert working.returncode == 0, log.read_text()
    assert "Traceback" not in log.read_text()
