"""What a plan is made of: actions that put a cluster right, and findings for what they can't."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.model.cluster import TopicSpec
from pipeline.topology.rules import Level

APPLY = "run `pipeline topics apply`"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about one topic: `problem` is what is wrong, `remedy` what to do. An error keeps workers from starting."""

    level: Level
    topic: str
    setting: str
    problem: str
    remedy: str

    @property
    def sentence(self) -> str:
        return f"{self.topic}: {self.problem}; {self.remedy}"


def together(findings: Sequence[Finding]) -> str:
    """One sentence for several: the first in full, of the others (partitions added to a source, say) where they are."""
    others = [each.topic if each.setting == "topic" else f"{each.setting} of {each.topic}" for each in findings[1:]]
    return findings[0].sentence + (f" (also: {', '.join(others)})" if others else "")


@dataclass(frozen=True, slots=True)
class CreateTopic:
    spec: TopicSpec
    why: str

    @property
    def topic(self) -> str:
        return self.spec.name


@dataclass(frozen=True, slots=True)
class SetConfig:
    topic: str
    setting: str
    value: str
    was: str
    why: str
    level: Level = "error"


@dataclass(frozen=True, slots=True)
class AddPartitions:
    topic: str
    total: int
    was: int
    why: str


Action = CreateTopic | SetConfig | AddPartitions


@dataclass(frozen=True, slots=True)
class Plan:
    """Actions in the order they have to be taken, and what they don't put right."""

    actions: tuple[Action, ...]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.level == "error")
