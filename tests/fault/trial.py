"""One trial of a row: topics, steady load, worker processes, the fault, the wait for the end, and the judgement."""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from pipeline.model.cluster import TopicPartition, TopicSpec
from pipeline.model.errors import PipelineError
from pipeline.model.policies import FlowPolicy
from tests.fault import inside
from tests.fault.bound import losses, work_max
from tests.fault.checker import Findings, judge, recovery_s
from tests.fault.feed import Feed, Mix, Value, values
from tests.fault.ground import LOGIN, Ground
from tests.fault.history import Blind, History, Origin
from tests.fault.reading import Beside, commits, copies, number_of, output_origins, read_all
from tests.integration.harness import GROUP, OUT, Process, Scene, make_app
from tests.integration.ledger import Mark
from tests.integration.waiting import until

ATTEMPTS = 4
EASY = Mix()
CONCURRENCY = 200
TIERS, TIERS_S = ("1s", "3s"), (1.0, 3.0)
STEP_S = 0.1
RECOVERY_MAX_S = 45.0
"""I7's bound. The longest a client of Kafka may look for a new leader or coordinator after a node came back is well below."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a trial is set up. `rate`: records a second, less where the load has to last `lasts_s`.

    `eos`: in one transaction with the commit. `graceful`: nothing may run twice.
    """

    records: int = 40_000
    rate: float = 4_000.0
    lasts_s: float = 10.0
    seed: int = 1
    partitions: int = 6
    mix: Mix = EASY
    protocol: str = "classic"
    eos: bool = False
    proxied: bool = False
    graceful: bool = False
    kind: str = "async"
    settings: dict[str, Any] = field(default_factory=dict)
    subscribe: dict[str, Any] = field(default_factory=dict)

    @property
    def load_s(self) -> float:
        return max(self.lasts_s, self.records / self.rate)


@dataclass
class Result:
    """A line of the report. `bound`: the duplicates that I4 allows; `faults`: how many there were, in words."""

    row: int
    name: str
    seed: int
    records: int = 0
    faults: str = ""
    lost: int = 0
    duplicates: int = 0
    bound: int = 0
    order_breaks: int = 0
    recovery_s: float | None = None
    seconds: float = 0.0
    problems: str = ""
    note: str = ""

    @property
    def good(self) -> bool:
        return not self.problems


class Tally:
    """The ledger, followed while it grows. `running`: the attempts that each process has started and not ended."""

    def __init__(self, path: Path) -> None:
        self.marks: list[Mark] = []
        self.running: dict[int, dict[Origin, int]] = defaultdict(dict)
        self.ended: set[Origin] = set()
        self.done: set[Origin] = set()
        self._file = path.open("rb")
        self._rest = b""

    def update(self) -> Tally:
        data = self._rest + self._file.read()
        lines = data.split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            mark = Mark(*json.loads(line))
            self.marks.append(mark)
            origin = (mark.partition, mark.offset)
            if mark.what == "start":
                self.running[mark.pid][origin] = mark.attempt
            else:
                self.running[mark.pid].pop(origin, None)
                if mark.what == "done":
                    self.done.add(origin)
                if mark.what != "fail" or mark.attempt >= ATTEMPTS:
                    self.ended.add(origin)
        return self

    def close(self) -> None:
        self._file.close()


class Trial:
    """A context: leaves no process and no thread. `say` is told what happens, for whoever watches."""

    def __init__(self, ground: Ground, row: int, name: str, plan: Plan, say: Callable[[str], None]) -> None:
        self.ground, self.plan, self.say = ground, plan, say
        self.draw = random.Random(plan.seed)
        self.result = Result(row, name, plan.seed)
        self._folder = Path(tempfile.mkdtemp(prefix=f"fault-{row}-"))
        self.scene = Scene(ground.direct, f"f{row}-{uuid.uuid4().hex[:8]}", self._folder, plan.partitions)
        self.tally = Tally(self.scene.ledger.path)
        self.feed = self.new_feed(values(plan.seed, plan.records, plan.mix))
        self.undecodable: set[Origin] = set()
        self.unreadable: list[int] = []
        self.blind: list[Blind] = []
        self.live: list[Process] = []
        self.deaths = 0
        self.away_s = 0.0
        self.faults: list[str] = []
        self._away_since: float | None = None
        self._healed: list[tuple[float, Collection[int]]] = []
        self._one_output = True
        self.beside: Beside | None = None

    # -- set up

    def new_feed(self, records: list[tuple[str, Value]]) -> Feed:
        return Feed(self.ground.direct, self.scene.topic(), records, len(records) / self.plan.load_s)

    def spec(self, **more: Any) -> dict[str, Any]:
        """Of a worker process; `more` goes to the workload beside settings and subscription."""
        plan = self.plan
        settings: dict[str, Any] = {"group_protocol": plan.protocol, **plan.settings}
        if plan.proxied:
            settings |= {"broker": self.ground.proxied, "client": LOGIN}
        subscribe = {
            "tiers": TIERS,
            "attempts": ATTEMPTS,
            "concurrency": CONCURRENCY,
            "flow": {"dead_letter_flood": 0, **({"transaction_timeout_ms": 5_000} if plan.eos else {})},
            **plan.subscribe,
        }
        if plan.eos:
            subscribe["delivery"] = "exactly_once"
        kind = more.pop("kind", plan.kind)
        return {**self.scene.spec(kind, settings, **subscribe), "app": "tests.fault.workload:app", **more}

    def prepare(self, workers: int = 2, **more: Any) -> None:
        """Topics, workers that share the partitions, load."""
        self.make_topics()
        self.workers(workers, **more)
        self.begin()

    def make_topics(self, outputs: int = 1) -> None:
        """Source, lanes, control topic, and the topic for outputs."""
        self.scene.make_topics(make_app({**self.spec(), "settings": self.scene.spec()["settings"]}))
        name = self.scene.topic(OUT)
        if name not in self.scene.admin.topic_names():
            self.scene.admin.create_topics([TopicSpec(name, outputs)])
        self._one_output = outputs == 1

    def begin(self) -> None:
        if self.plan.eos:
            self.beside = Beside(self.ground.direct, self.scene.topic(OUT))
        self.say(f"{self.feed.count:,} records in {self.plan.load_s:.0f} s")
        self.feed.start()

    def workers(self, count: int, **more: Any) -> list[Process]:
        started = [self.worker(**more) for _ in range(count)]
        self.shared(started)
        return started

    def shared(self, processes: Sequence[Process]) -> None:
        """Until all partitions are open in these processes, and each of them has some."""
        everything = list(range(self.plan.partitions))

        def are_shared() -> bool:
            owned = [process.partitions() for process in processes]
            return all(owned) and sorted(p for each in owned for p in each) == everything

        self.wait("the partitions are shared", are_shared, 90)

    def worker(self, **more: Any) -> Process:
        process = self.scene.start(self.spec(**more))
        self.live.append(process)
        return process

    def supervised(self, processes: int, **more: Any) -> Process:
        """A supervisor with that many workers, in their place: `stop` stops all of them."""
        spec = self.spec(**more)
        code = (
            f"from pipeline.worker.supervisor import run; raise SystemExit(run({spec['app']!r}, processes={processes}))"
        )
        process = Process(spec, self.scene.folder / f"supervisor-{len(self.live)}.log", [sys.executable, "-c", code])
        self.scene.processes.append(process)
        self.live.append(process)
        return process

    # -- faults

    def kill(self, process: Process) -> None:
        process.kill()
        self.ended(process, "killed")

    def stop_in_a_handler(self, failing: bool = False) -> Process:
        """SIGSTOP to a drawn worker at a moment when handlers of it run; `failing`: one of them will fail."""

        def fails(origin: Origin, attempt: int) -> bool:
            value = self.feed.records[self.feed.sent[origin].number][1] if origin in self.feed.sent else None
            return isinstance(value, dict) and bool(value.get("fails", 0) >= attempt)

        def caught() -> Process | None:
            for process in self.draw.sample(self.live, len(self.live)):
                process.send(signal.SIGSTOP)
                until("it is stopped", lambda pid=process.pid: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
                running = self.tally.update().running[process.pid].items()
                if any(not failing or fails(*attempt) for attempt in running):
                    return process
                process.send(signal.SIGCONT)
            return None

        found: Process = self.wait("handlers run in some worker", caught, 30)
        return found

    def ended(self, process: Process, how: str) -> None:
        self.live.remove(process)
        self.deaths += 1
        self.disturb(f"worker {how}")

    def stop(self, process: Process) -> float:
        """SIGTERM; how long it took to end, cleanly."""
        began = time.monotonic()
        code = process.stop(60)
        self.live.remove(process)
        took_s = time.monotonic() - began
        self.faults.append("graceful stop")
        if code != 0:
            self.problem(f"a worker that was asked to stop ended with code {code}")
        return took_s

    def disturb(self, what: str, times: int = 1, away: bool = False) -> None:
        """A fault. `away`: it keeps commits from the brokers until it is healed."""
        if away and self._away_since is None:
            self._away_since = time.monotonic()
        self.faults += [what] * times
        self.say(what)

    def healed(self, partitions: Collection[int] = ()) -> None:
        """From now on there must be progress on these partitions (all, unless told)."""
        self._healed.append((time.time(), partitions))
        if self._away_since is not None:
            self.away_s = max(self.away_s, time.monotonic() - self._away_since)
            self._away_since = None

    def problem(self, sentence: str) -> None:
        self.say(sentence)
        self.result.problems += ("; " if self.result.problems else "") + sentence

    # -- waiting

    def wait(self, what: str, condition: Callable[[], Any], deadline_s: float = 60.0) -> Any:
        end = time.monotonic() + deadline_s
        while True:
            try:
                if answer := condition():
                    return answer
            except PipelineError as error:
                self.say(f"{what}: {error}")
            if time.monotonic() > end:
                self._look_inside()
                raise AssertionError(f"not within {deadline_s:.0f} s: {what}\n{self.scene.describe()}")
            time.sleep(STEP_S)

    def _look_inside(self) -> None:
        """Their logs say what they were doing when it was given up."""
        for process in self.live:
            process.send(inside.SIGNAL)
        time.sleep(1.0)

    def pause(self, seconds: float) -> None:
        """How long a fault lasts; or until the next one, as drawn."""
        time.sleep(seconds)

    def until_done(self, share: float) -> None:
        wanted = int(self.plan.records * share)
        self.wait(f"{wanted} are done", lambda: len(self.tally.update().done) >= wanted, 120 + self.plan.load_s)

    # -- the end

    def lanes(self) -> list[str]:
        return [self.scene.lane(f"retry.{tier}") for tier in TIERS]

    def dead_headers(self) -> list[dict[str, bytes]]:
        return [dict(m.headers()) for m in read_all(self.ground.direct, [self.scene.lane("dlq")])]

    def _all_ended(self) -> bool:
        self.tally.update()
        return all(o in self.tally.ended or o in self.undecodable for o in self.feed.sent)

    def drained(self) -> bool:
        """Everything of the source is committed, and of the lanes too (behind transactions: but for their markers)."""
        positions = self.scene.committed()
        topics = [self.scene.topic(), *([] if self.plan.eos else self.lanes())]
        places = [TopicPartition(topic, p) for topic in topics for p in range(self.plan.partitions)]
        ends = self.scene.admin.end_offsets(places)
        return all(not end or (tp in positions and positions[tp].offset >= end) for tp, end in ends.items())

    def finish(self, deadline_s: float = 120.0) -> Result:
        """Wait until everything has its ending, stop the workers in order, read the topics, judge."""
        self.feed.wait(120 + self.plan.load_s)
        self.wait("every record has its ending", self._all_ended, deadline_s)
        self.wait("everything is committed", self.drained, 60)
        for process in list(self.live):
            code = process.stop(60)
            self.live.remove(process)
            if code != 0:
                self.problem(f"a worker ended with code {code}")
        self.say("reading the topics back")
        history = self.history()
        self._fill(history, judge(history, self.plan.eos))
        return self.result

    def history(self) -> History:
        scene, where = self.scene, self.ground.direct
        source = {
            (m.partition(), m.offset()): number_of(m)
            for m in read_all(where, [scene.topic()], unreadable=self.unreadable)
        }
        outputs = output_origins(read_all(where, [scene.topic(OUT)]))
        written = output_origins(read_all(where, [scene.topic(OUT)], "read_uncommitted")) if self.plan.eos else outputs
        seen = self.beside.seen(len(outputs)) if self.beside and self._one_output else None
        lanes = copies(read_all(where, [*self.lanes(), scene.lane("replay")]))
        return History(
            self.feed.sent, source, self.tally.update().marks, lanes, copies(read_all(where, [scene.lane("dlq")])),
            outputs, written, seen, commits(where, scene.prefix + GROUP), TIERS_S, self.blind, scene.topic(),
        )  # fmt: skip

    def _fill(self, history: History, found: Findings) -> None:
        result, plan = self.result, self.plan
        result.records += len(self.feed.sent)
        result.lost = len(found.lost) + len(found.unread) + len(found.outputs_lost)
        result.duplicates = len(found.two_endings) if plan.eos else len(found.repeated)
        result.order_breaks = len(found.disorder) + len(found.outputs_disorder)
        if plan.eos and plan.graceful:
            result.duplicates += len(found.repeated)
        result.bound = 0 if plan.graceful or plan.eos else self.allowed(history)
        result.faults = tell(self.faults)
        if text := found.text(repeats=not plan.graceful):
            self.problem(text)
        if not plan.eos and result.duplicates > result.bound:
            self.problem(f"{result.duplicates} duplicates are more than {result.bound}")
        self._recovery(history)

    def allowed(self, history: History) -> int:
        """I4: (kills + rebalances) x the work in flight."""
        flow = {"commit_interval_ms": FlowPolicy().commit_interval_ms, **self.plan.subscribe.get("flow", {})}
        concurrency = self.plan.subscribe.get("concurrency", CONCURRENCY)
        disturbances = self.deaths + sum(losses(process.lines()) for process in self.scene.processes)
        return disturbances * work_max(history, concurrency, flow["commit_interval_ms"] / 1000, self.away_s)

    def _recovery(self, history: History) -> None:
        times = []
        for at, partitions in self._healed:
            wanted = [o for o in history.sent if not partitions or o[0] in partitions]
            times.append(recovery_s(history.marks, wanted, at))
        if times:
            self.result.recovery_s = max(times)
            if max(times) > RECOVERY_MAX_S:
                self.problem(f"no progress for {max(times):.1f} s after the fault was over")

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.feed.stop()
        if self.beside:
            self.beside.close()
        for process in self.scene.processes:
            if process.popen.poll() is None:
                process.send(signal.SIGCONT)
                process.kill()
        self.tally.close()
        if kind is None and self.result.good:
            shutil.rmtree(self._folder, ignore_errors=True)
        else:
            self.say(f"ledger and logs of the workers are in {self._folder}")


def tell(faults: Sequence[str]) -> str:
    """ "3 x worker killed, broker killed"."""
    counts = {what: faults.count(what) for what in dict.fromkeys(faults)}
    return ", ".join(what if count == 1 else f"{count} x {what}" for what, count in counts.items())


def with_share(plan: Plan, share: float) -> Plan:
    return replace(plan, records=max(1, int(plan.records * share)))
