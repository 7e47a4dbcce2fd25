"""A routing table: one group, one handler for each type of event.

pipeline topics apply router:app
pipeline run router:app
"""

from __future__ import annotations

from collections import Counter

from pipeline import Context, Pipeline, Retry, Router, RunCompleted, RunEvent, RunFailed, ToolResult

app = Pipeline("quality")
router = Router()
seen: Counter[str] = Counter()


@router.on(RunCompleted, RunFailed)
async def ended(event: RunCompleted | RunFailed, ctx: Context) -> None:
    seen["ended"] += 1
    ctx.log.info("run ended", kind=type(event).__name__, steps=event.steps, took_ms=event.duration_ms)


@router.on(ToolResult)
async def tool_result(event: ToolResult, ctx: Context) -> None:
    seen["tool"] += 1
    if event.status == "TIMEOUT" and ctx.attempt == 1:
        raise Retry("look again when the tool has had time to recover", after="1m")


@router.otherwise
async def other(event: RunEvent, ctx: Context) -> None:
    seen["other"] += 1


app.subscribe("agent.run.events", group="quality", tiers=("1m", "10m"), attempts=4)(router)
