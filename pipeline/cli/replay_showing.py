"""How `pipeline replay` shows plans and their progress."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.cli.bars import gauge, progress_text
from pipeline.cli.output import Column, clean, line, table
from pipeline.cli.why import clock

if TYPE_CHECKING:
    from pipeline.replay.options import Tally
    from pipeline.replay.plan import ReplayPlan
    from pipeline.replay.status import Status

BAR = 30


@contextlib.contextmanager
def run_bar(quiet: bool) -> Iterator[Callable[[Tally], None]]:
    with gauge("replaying", quiet) as show:
        yield lambda tally: show(tally.done, tally.total, lambda: _words(tally))


def _words(tally: Tally) -> str:
    state = "" if tally.state == "running" else f", {tally.state}"
    return progress_text(tally.done, tally.total, tally.rate, tally.left_s) + state


def show_plan(plan: ReplayPlan) -> None:
    """The preview in tables."""
    preview: Mapping[str, Any] = plan.preview or {}
    line(f"Plan {plan.plan_id}: {clean(plan.source.topic)} -> {clean(plan.target.text)}", "bold")
    line(f"{preview['selected']:,} of {preview['offsets']:,} records are chosen; about {preview['expected_s']} s")
    left_out = {
        "not_processed_yet": "the group has not processed them yet",
        "loop_capped": "were replayed often enough",
    }
    for name, text in left_out.items():
        if preview.get(name):
            line(f"left out: {preview[name]:,}, {text}")
    if preview.get("inverted_keys"):
        line(f"{preview['inverted_keys']:,} keys lie in another order than their origins: sent last, in order")
    if preview["checked"]:
        line(
            f"of {preview['checked']:,} values looked at {preview['decoded']:,} decode, {preview['valid']:,} fit their contract"
        )
    for problem, count in preview["problems"].items():
        line(f"  {count:,}: {clean(problem)}", "yellow")
    for title in ("partitions", "types", "errors"):
        found = preview.get(title) or {}
        if found:
            table([title[:-1], Column("records", right=True)], [(name, f"{n:,}") for name, n in found.items()])
    keys = [(row["key"], f"{row['records']:,}") for row in preview["keys"]]
    table(["key", Column("records", right=True)], keys, "no keys")
    _histogram(preview["histogram"])
    if preview["samples"]:
        table(
            ["at", "key", "type", "value"],
            [(s["place"], s["key"], s["type"], s["value"][:100]) for s in preview["samples"]],
        )


def _histogram(bars: list[dict[str, int]]) -> None:
    most = max((bar["records"] for bar in bars), default=0)
    rows = [
        (clock(bar["from_ms"]), f"{bar['records']:,}", "#" * -(-bar["records"] * BAR // most)) for bar in bars if most
    ]
    if rows:
        table(["from", Column("records", right=True), ""], rows)


def show_status(found: Status) -> None:
    counts = ", ".join(f"{n:,} {name}" for name, n in sorted(found.counts.items())) or "nothing yet"
    total = "" if found.total is None else f" of {found.total:,}"
    line(
        f"{found.plan.plan_id}: {found.state}; {found.done:,}{total} records ({counts}) -> {clean(found.plan.target.text)}",
        "bold",
    )
    if found.switched:
        line(clean(found.switched))
    spans = found.plan.source.spans
    rows = [(p, spans[p].start, done.offset, spans[p].end, done.seen) for p, done in sorted(found.partitions.items())]
    table([Column(name, right=True) for name in ("partition", "from", "at", "to", "looked at")], rows)
    if found.failures:
        more = f"the first {len(found.failures)} of {found.failed:,}" if found.failed > len(found.failures) else "all"
        line(f"could not be written, {more}:", "yellow")
        table(["at", "outcome", "why"], [(f"{f.partition}:{f.offset}", f.outcome, f.error) for f in found.failures])
    for member in found.members:
        line(f"at work: {clean(member.client_id)} on {clean(member.host)}")
    if found.state == "interrupted":
        line(f"nobody is at it: `pipeline replay run {found.plan.plan_id}` goes on")
