"""A Kafka that lets nobody do what no ACL allows, the rights of the guide's tables, and people with a role at a shell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import IO, Any

from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from pipeline.kafka.embedded import BrokerSpec, EmbeddedBroker
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
PAGE, EXACTLY_ONCE = (ROOT / "docs" / "guide" / name for name in ("security.md", "exactly-once.md"))
ROLES = ("deployer", "agent", "worker", "operator", "repairer", "caller", "job-worker", "job-operator")
_ROW = re.compile(
    r"^\| (\w[\w ]+) \| (topic|group|transactional id) \| `([^`]+)`( prefixed)? \| ([\w, ]+) \|$", re.MULTILINE
)
_OPERATIONS = {re.sub("_", "", each.name).lower(): each for each in AclOperation}
_RESOURCES = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional id": ResourceType.TRANSACTIONAL_ID,
}
PATIENCE_S = 60 * PATIENCE


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
    """The tables of a page: role, resource type, name, prefixed?, operations. A role's name is its login too."""
    return [
        (
            role.replace(" ", "-"),
            kind,
            name,
            bool(prefixed),
            [_OPERATIONS[right.strip().lower()] for right in rights.split(",")],
        )
        for role, kind, name, prefixed, rights in _ROW.findall(page.read_text(encoding="utf-8"))
    ]


def _named(name: str, prefix: str) -> str:
    """As it is called in an environment with a prefix: topics and groups have it, so a group's lanes have it twice."""
    return prefix + re.sub(r"\.(?=(?:billing|books)\.)", f".{prefix}", name)


def _acl(role: str, kind: str, name: str, prefixed: bool, operation: AclOperation) -> dict[str, Any]:
    return {
        "restype": _RESOURCES[kind],
        "name": name,
        "resource_pattern_type": ResourcePatternType.PREFIXED if prefixed else ResourcePatternType.LITERAL,
        "principal": f"User:{role}",
        "host": "*",
        "operation": operation,
        "permission_type": AclPermissionType.ALLOW,
    }


class Rights:
    """All that a page's table says, in the environment with that prefix; single ones can be taken and given back."""

    def __init__(self, address: str, page: Path = PAGE, prefix: str = "", roles: Collection[str] = ROLES) -> None:
        self._admin = AdminClient(_login(address, "admin"))
        self._prefix = prefix
        every = [
            AclBinding(**_acl(role, kind, _named(name, prefix), prefixed, operation))
            for role, kind, name, prefixed, operations in rows(page)
            for operation in operations
            if role in roles
        ]
        for future in self._admin.create_acls(every).values():
            future.result(10)

    def take(self, role: str, name: str, *operations: AclOperation) -> None:
        """The page's row for that role and name loses these operations."""
        for acl in self._of(role, name, operations):
            for future in self._admin.delete_acls([AclBindingFilter(**acl)]).values():
                assert future.result(10), f"there was no such right: {acl}"

    def give(self, role: str, name: str, *operations: AclOperation) -> None:
        for future in self._admin.create_acls([AclBinding(**acl) for acl in self._of(role, name, operations)]).values():
            future.result(10)

    def _of(self, role: str, name: str, operations: Iterable[AclOperation]) -> list[dict[str, Any]]:
        kind, prefixed = next((row[1], row[3]) for row in rows() if row[0] == role and row[2] == name)
        return [_acl(role, kind, _named(name, self._prefix), prefixed, each) for each in operations]


def publish(address: str, topic: str, *values: bytes) -> None:
    """By somebody who may do anything; all with one key, to partition 0."""
    producer = Producer(_login(address, "admin"))
    for value in values:
        producer.produce(topic, value, b"k", 0)
    assert producer.flush(10) == 0


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

    def start(self, *words: str, log: IO[str] | None = None, typed: IO[str] | None = None) -> subprocess.Popen[str]:
        """`log`: where both outputs go; `typed`: standard input."""
        program = ["-c", "from pipeline.cli.main import run; run()", *words[1:]] if words[0] == "pipeline" else words
        return subprocess.Popen(
            [sys.executable, *program], cwd=ROOT / "examples", env=self.environment, text=True,
            stdin=typed or subprocess.DEVNULL, stdout=log or subprocess.PIPE, stderr=log or subprocess.PIPE,
        )  # fmt: skip

    def does(self, *words: str) -> tuple[int, str, str]:
        process = self.start(*words)
        try:
            out, err = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
            process.wait()
        return process.returncode, out, err
