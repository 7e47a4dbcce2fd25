"""The demo's result: what was counted, whether it is good, and the object that `--json` ends with."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pipeline.demo.accounting import GroupAccount, SourceAccount

TAKEOVER_MAX_S = 15.0


@dataclass(frozen=True, slots=True)
class KillReport:
    """The worker that was killed. `takeover_s`: None when its partitions had nothing left to do, -1 when they never went on."""

    worker: str
    pid: int
    at_s: float
    partitions: int
    in_flight: int
    takeover_s: float | None

    @property
    def ok(self) -> bool:
        return self.takeover_s is not None and 0 <= self.takeover_s <= TAKEOVER_MAX_S


@dataclass(frozen=True, slots=True)
class Rates:
    """Records a second by the brokers' times: on average over the work, and in the busiest second."""

    published: float
    published_peak: int
    processed: float
    processed_peak: int


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the demo says at its end."""

    runs: int
    skipped: int
    source: SourceAccount
    groups: tuple[GroupAccount, ...]
    kill: KillReport | None
    rates: Rates
    seconds: float
    timed_out: bool

    @property
    def ok(self) -> bool:
        return not self.problems()

    def problems(self) -> list[str]:
        """One sentence for each thing that is wrong; empty when every record is accounted for."""
        found = []
        names = {
            "missing": "published records are not in the source topic",
            "duplicates": "records stand more than once in the source topic",
            "out_of_order": "records of the source topic are not in the order of their publishing",
            "strays": "records of the source topic were not published by the demo",
        }
        found += [f"{getattr(self.source, name)} {text}" for name, text in names.items() if getattr(self.source, name)]
        for group in self.groups:
            found += [f"{group.group}: {text}" for text in _group_problems(group)]
        if self.kill is None:
            found.append("no worker was killed, so the run shows nothing about crashes")
        elif not self.kill.ok:
            found.append(_takeover_problem(self.kill))
        if self.timed_out:
            found.append("not everything was accounted for before the deadline")
        return found

    def examples(self) -> list[str]:
        """Some of the records that are meant."""
        return [f"{group.group}: {text}" for group in self.groups for text in group.examples]

    def as_dict(self) -> dict[str, object]:
        """Totals over both groups, and each group by itself."""
        groups = self.groups
        retried, waited = Counter[str](), Counter[str]()
        for group in groups:
            retried.update(group.retried)
            waited.update(group.waited)
        return {
            "ok": self.ok,
            "runs": self.runs,
            "published": self.source.published,
            "processed": sum(g.processed for g in groups),
            "retried": dict(retried),
            "waited": dict(waited),
            "dead_lettered": sum(g.dead_lettered for g in groups),
            "lost": self.source.missing + sum(g.lost for g in groups),
            "duplicates": self.source.duplicates + sum(g.duplicates for g in groups),
            "redelivered": sum(g.redelivered for g in groups),
            "out_of_order": self.source.out_of_order + sum(g.out_of_order for g in groups),
            "altered": sum(g.altered for g in groups),
            "strays": self.source.strays + sum(g.strays for g in groups),
            "unsettled": sum(g.unsettled for g in groups),
            "skipped": self.skipped,
            "seconds": round(self.seconds, 1),
            "rates": {
                "published_per_s": round(self.rates.published),
                "published_per_s_peak": self.rates.published_peak,
                "processed_per_s": round(self.rates.processed),
                "processed_per_s_peak": self.rates.processed_peak,
            },
            "killed": _kill_dict(self.kill),
            "groups": {group.group: _group_dict(group) for group in groups},
            "problems": self.problems(),
            "examples": self.examples(),
        }


def _group_problems(group: GroupAccount) -> list[str]:
    names = {
        "lost": "records have no ending (neither processed nor a dead letter)",
        "duplicates": "records ended twice, and the kill does not explain it",
        "out_of_order": "records ended before an earlier record of their key",
        "altered": "copies differ from what was published",
        "strays": "endings or copies belong to no published record",
        "unsettled": "offsets were not committed at the end",
    }
    return [f"{getattr(group, name)} {text}" for name, text in names.items() if getattr(group, name)]


def _takeover_problem(kill: KillReport) -> str:
    if kill.takeover_s is None:
        return f"the partitions of {kill.worker} had nothing left to do when it was killed"
    if kill.takeover_s < 0:
        return f"the partitions of {kill.worker} never went on after it was killed"
    return f"the work of {kill.worker} went on only after {kill.takeover_s:.1f} s (at most {TAKEOVER_MAX_S:g} s)"


def _kill_dict(kill: KillReport | None) -> dict[str, object] | None:
    if kill is None:
        return None
    return {
        "worker": kill.worker,
        "pid": kill.pid,
        "at_s": round(kill.at_s, 1),
        "partitions": kill.partitions,
        "in_flight": kill.in_flight,
        "takeover_s": None if kill.takeover_s is None else round(kill.takeover_s, 2),
    }


def _group_dict(group: GroupAccount) -> dict[str, object]:
    names = (
        "processed", "retried", "waited", "dead_lettered", "lost", "duplicates", "redelivered",
        "out_of_order", "altered", "strays", "unsettled",
    )  # fmt: skip
    return {name: getattr(group, name) for name in names}
