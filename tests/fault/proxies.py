"""Proxies before all nodes of a cluster in a process of their own, so that they keep their pace beside the load and the checks.

`python -m tests.fault.proxies` reads one JSON command a line and answers each with one line; it ends with its standard input.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.integration.kafka_proxy import KafkaProxy, Request, Verdict

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Rule:
    """Of the requests of one kind each `every`-th meets this fate, at most `limit` of them (0: all). `client`: only with this client id."""

    kind: int
    fate: Verdict
    every: int = 1
    limit: int = 0
    client: str = ""


class Judge:
    """Rules shared by all proxies, as a client's requests go to several nodes."""

    def __init__(self) -> None:
        self._rules: list[Rule] = []
        self._seen: Counter[int] = Counter()
        self._met: Counter[int] = Counter()
        self._lock = threading.Lock()

    def set(self, rules: list[Rule]) -> None:
        with self._lock:
            self._rules = rules
            self._seen.clear()
            self._met.clear()

    def met(self) -> list[int]:
        """How many requests met each rule."""
        with self._lock:
            return [self._met[index] for index in range(len(self._rules))]

    def __call__(self, request: Request) -> Verdict:
        if not self._rules:
            return "pass"
        with self._lock:
            for index, rule in enumerate(self._rules):
                if rule.kind != request.kind or rule.client not in request.client_id:
                    continue
                self._seen[index] += 1
                if self._seen[index] % rule.every == 0 and not 0 < rule.limit <= self._met[index]:
                    self._met[index] += 1
                    return rule.fate
        return "pass"


class Proxies:
    """The process, from outside. Nodes are numbered as Kafka does, from 1; 0 means all of them."""

    def __init__(self, ports: list[tuple[int, int]]) -> None:
        """`ports`: for each node the one clients come to, and the one the node listens on."""
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fault.proxies"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._ask({"ports": ports})

    def _ask(self, command: dict[str, Any]) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        with self._lock:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process of the proxies ended with code {self._process.wait(5)}")
        return json.loads(answer)

    def rules(self, *rules: Rule) -> None:
        self._ask({"do": "rules", "rules": [asdict(rule) for rule in rules]})

    def met(self) -> list[int]:
        found: list[int] = self._ask({"do": "met"})
        return found

    def held(self) -> int:
        return int(self._ask({"do": "held"}))

    def release(self) -> int:
        return int(self._ask({"do": "release"}))

    def cut(self, node: int = 0) -> int:
        return int(self._ask({"do": "cut", "node": node}))

    def silence(self, node: int = 0) -> int:
        return int(self._ask({"do": "silence", "node": node}))

    def freeze(self, node: int = 0) -> None:
        self._ask({"do": "freeze", "node": node})

    def refuse(self, node: int = 0) -> None:
        self._ask({"do": "refuse", "node": node})

    def delay(self, seconds: float, node: int = 0) -> None:
        self._ask({"do": "delay", "node": node, "seconds": seconds})

    def heal(self) -> None:
        """No rules, no delay, nothing frozen or refused, nothing held."""
        self._ask({"do": "heal"})

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(10)


def _obey(command: dict[str, Any], proxies: list[KafkaProxy], judge: Judge) -> Any:
    node = command.get("node", 0)
    chosen = [proxies[node - 1]] if node else proxies
    match command["do"]:
        case "rules":
            judge.set([Rule(**rule) for rule in command["rules"]])
        case "met":
            return judge.met()
        case "held":
            return sum(proxy.held for proxy in proxies)
        case "release":
            return sum(proxy.release() for proxy in proxies)
        case "cut":
            return sum(proxy.cut() for proxy in chosen)
        case "silence":
            return sum(proxy.silence() for proxy in chosen)
        case "freeze":
            for proxy in chosen:
                proxy.freeze()
        case "refuse":
            for proxy in chosen:
                proxy.refusing = True
        case "delay":
            for proxy in chosen:
                proxy.delay_s = command["seconds"]
        case "heal":
            judge.set([])
            for proxy in proxies:
                proxy.delay_s, proxy.refusing = 0.0, False
                proxy.thaw()
                proxy.release()
    return None


def main() -> None:
    judge = Judge()
    proxies: list[KafkaProxy] = []
    for line in sys.stdin:
        command = json.loads(line)
        if "ports" in command:
            for front, behind in command["ports"]:
                proxy = KafkaProxy(front, behind)
                proxy.judge = judge
                proxies.append(proxy)
            print("null", flush=True)
        else:
            print(json.dumps(_obey(command, proxies, judge)), flush=True)
    for proxy in proxies:
        proxy.close()


if __name__ == "__main__":
    main()
