"""docs/guide/security.md says which rights each role needs: here they get those and no others, on a Kafka that enforces them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
PAGE = ROOT / "docs" / "guide" / "security.md"
ROLES = ("deployer", "agent", "worker", "operator")
_ROW = re.compile(r"^\| (\w+) \| (topic|group) \| `([^`]+)`( prefixed)? \| ([\w, ]+) \|$", re.MULTILINE)
_OPERATIONS = {re.sub("_", "", each.name).lower(): each for each in AclOperation}
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


def rows() -> list[tuple[str, str, str, bool, list[AclOperation]]]:
    """The table of the page: role, resource type, name, prefixed?, operations."""
    return [
        (role, kind, name, bool(prefixed), [_OPERATIONS[right.strip().lower()] for right in rights.split(",")])
        for role, kind, name, prefixed, rights in _ROW.findall(PAGE.read_text(encoding="utf-8"))
    ]


def _bindings() -> list[AclBinding]:
    return [
        AclBinding(
            ResourceType.TOPIC if kind == "topic" else ResourceType.GROUP,
            name,
            ResourcePatternType.PREFIXED if prefixed else ResourcePatternType.LITERAL,
            f"User:{role}",
            "*",
            operation,
            AclPermissionType.ALLOW,
        )
        for role, kind, name, prefixed, operations in rows()
        for operation in operations
    ]


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    with GuardedBroker() as broker:
        admin = AdminClient(_login(broker.bootstrap, "admin"))
        for future in admin.create_acls(_bindings()).values():
            future.result(10)
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

    def start(self, *words: str) -> subprocess.Popen[str]:
        program = ["-c", "from pipeline.cli.main import run; run()", *words[1:]] if words[0] == "pipeline" else words
        return subprocess.Popen(
            [sys.executable, *program], cwd=ROOT / "examples", env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
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
    deployer, agent, worker, operator = (Person(guarded, role) for role in ROLES)

    code, out, err = deployer.does("pipeline", "topics", "apply", "billing:app", "--partitions", "2")
    assert code == 0, out + err
    code, out, err = deployer.does("pipeline", "schemas", "register", "agent.run.events")
    assert code == 0, out + err

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
