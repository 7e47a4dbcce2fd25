"""The guide says which rights each role needs: here they get those and no others, on a Kafka that enforces them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from pipeline.kafka.embedded import BrokerSpec, EmbeddedBroker
from tests.integration.harness import until

ROOT = Path(__file__).parents[2]
PAGE, EXACTLY_ONCE = (ROOT / "docs" / "guide" / name for name in ("security.md", "exactly-once.md"))
ROLES = ("deployer", "agent", "worker", "operator")
_ROW = re.compile(
    r"^\| (\w+) \| (topic|group|transactional id) \| `([^`]+)`( prefixed)? \| ([\w, ]+) \|$", re.MULTILINE
)
_OPERATIONS = {re.sub("_", "", each.name).lower(): each for each in AclOperation}
_RESOURCES = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional id": ResourceType.TRANSACTIONAL_ID,
}
PATIENCE_S = 60


def _login(address: str, user: str) -> dict[str, Any]:
    return {
        "bootstrap.servers": address,
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": user,
        "sasl.password": f"{user}-secret",
        "log_level": 0,
    }


class GuardedBroker(EmbeddedBroker):
    """One node that asks for a login and lets nobody do what no ACL allows."""

    def __init__(self) -> None:
        users = " ".join(f'user_{name}="{name}-secret"' for name in ("admin", *ROLES))
        module = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        extra = {
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS;User:admin",  # the controller's listener knows no login
            "listener.security.protocol.map": "PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
            "sasl.enabled.mechanisms": "PLAIN",
            "sasl.mechanism.inter.broker.protocol": "PLAIN",
            "listener.name.plaintext.plain.sasl.jaas.config": f'{module} username="admin" password="admin-secret" {users};',
        }
        super().__init__(BrokerSpec(extra=extra), mirror=os.environ.get("PIPELINE_MAVEN_MIRROR"))

    def _await_node(self, layout: Any, node_id: int, expected: set[int], deadline: float) -> None:
        admin = AdminClient(_login(f"127.0.0.1:{layout.ports[node_id - 1].broker}", "admin"))
        while True:
            try:
                if admin.list_topics(timeout=2).brokers:
                    return
            except KafkaException:
                pass
            self._check(layout, node_id, deadline)
            time.sleep(0.05)


def rows(page: Path = PAGE) -> list[tuple[str, str, str, bool, list[AclOperation]]]:
    """The table of a page: role, resource type, name, prefixed?, operations."""
    return [
        (role, kind, name, bool(prefixed), [_OPERATIONS[right.strip().lower()] for right in rights.split(",")])
        for role, kind, name, prefixed, rights in _ROW.findall(page.read_text(encoding="utf-8"))
    ]


def _bindings(page: Path = PAGE) -> list[AclBinding]:
    return [
        AclBinding(
            _RESOURCES[kind],
            name,
            ResourcePatternType.PREFIXED if prefixed else ResourcePatternType.LITERAL,
            f"User:{role}",
            "*",
            operation,
            AclPermissionType.ALLOW,
        )
        for role, kind, name, prefixed, operations in rows(page)
        for operation in operations
    ]


def grant(address: str, page: Path) -> None:
    """All that a page's table says."""
    admin = AdminClient(_login(address, "admin"))
    for future in admin.create_acls(_bindings(page)).values():
        future.result(10)


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    with GuardedBroker() as broker:
        grant(broker.bootstrap, PAGE)
        deployer = Person(broker.bootstrap, "deployer")
        for words in (
            ("topics", "apply", "billing:app", "--partitions", "2"),
            ("schemas", "register", "agent.run.events"),
        ):
            code, out, err = deployer.does("pipeline", *words)
            assert code == 0, out + err
        yield broker.bootstrap


CHARGES = 2


class Person:
    """Somebody with a role at a shell in examples/."""

    def __init__(self, address: str, role: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PIPELINE_")}
        self.environment = kept | {
            "PIPELINE_BROKER": address,
            "PIPELINE_USERNAME": role,
            "PIPELINE_PASSWORD": f"{role}-secret",
            "PIPELINE_CLIENT": '{"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN"}',
            "PYTHONPATH": str(ROOT),
        }

    def start(self, *words: str, log: IO[str] | None = None) -> subprocess.Popen[str]:
        program = ["-c", "from pipeline.cli.main import run; run()", *words[1:]] if words[0] == "pipeline" else words
        return subprocess.Popen(
            [sys.executable, *program], cwd=ROOT / "examples", env=self.environment, text=True,
            stdout=log or subprocess.PIPE, stderr=log or subprocess.PIPE,
        )  # fmt: skip

    def does(self, *words: str) -> tuple[int, str, str]:
        process = self.start(*words)
        try:
            out, err = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
            process.wait()
        return process.returncode, out, err


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
    assert code != 0 or not out, "an agent can read"
    code, out, err = agent.does("pipeline", "pause", "billing")
    assert code == 1 or code == 2, out + err
    code, out, err = worker.does("support_bot.py")
    assert "not delivered" in err, "a worker can write to its source"


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
    grant(guarded, EXACTLY_ONCE)
    assert "uthoriz" not in run_until("records are charged in transactions", lambda _: charged())
