"""A batch handler: many events in one call, one outcome for each; only those that failed are tried again.

pipeline topics apply batch_costs:app
pipeline run batch_costs:app
"""

from __future__ import annotations

from collections import Counter

from pipeline import BatchPolicy, Context, ModelCall, Pipeline, Reject

app = Pipeline("costs")
tokens: Counter[str] = Counter()


@app.subscribe(
    "agent.run.events",
    group="costs",
    order="none",
    batch=BatchPolicy(size=200, wait_ms=100),
    tiers=("30s", "5m"),
    attempts=3,
)
async def add_up(events: list[ModelCall], contexts: list[Context]) -> list[Reject | None]:
    """`None` = done. A sum does not care about order, so `order="none"` lets one run's events share a batch."""
    outcomes: list[Reject | None] = []
    for event in events:
        if event.input_tokens > 10_000_000:
            outcomes.append(Reject(f"{event.input_tokens} input tokens in one call can't be right"))
            continue
        tokens[event.model] += event.input_tokens + event.output_tokens
        outcomes.append(None)
    contexts[-1].log.info("added up", events=len(events), tokens=dict(tokens))
    return outcomes
