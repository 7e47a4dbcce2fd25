"""Topics of an application: a pure plan of what has to exist, the check a worker makes at start, and the hand that applies it."""

from pipeline.topology.actions import Action, AddPartitions, CreateTopic, Finding, Plan, SetConfig, together
from pipeline.topology.applier import apply, execute, existing_topics, plan_for
from pipeline.topology.naming import Layout, RetiredTier, discover, layout, layouts, retired_of, retired_tiers
from pipeline.topology.planner import check, plan
from pipeline.topology.rules import Beside, Defaults, Rule

__all__ = [
    "Action",
    "AddPartitions",
    "Beside",
    "CreateTopic",
    "Defaults",
    "Finding",
    "Layout",
    "Plan",
    "RetiredTier",
    "Rule",
    "SetConfig",
    "apply",
    "check",
    "discover",
    "execute",
    "existing_topics",
    "layout",
    "layouts",
    "plan",
    "plan_for",
    "retired_of",
    "retired_tiers",
    "together",
]
