"""A worker: prices every model call, retries what may heal, gives up on what can't, and emits a charge that a second group books.

pipeline topics apply billing:app
pipeline run billing:app --processes 2
"""

from __future__ import annotations

from typing import Any

from pipeline import Context, ModelCall, Pipeline, Reject, Retry

app = Pipeline("billing")

DOLLARS_PER_MILLION = {"gpt-large": (5.0, 15.0), "gpt-small": (0.5, 1.5)}


async def price_of(model: str) -> tuple[float, float]:
    """Stands for a call of a price service, which may be busy."""
    return DOLLARS_PER_MILLION[model]


@app.subscribe(
    "agent.run.events", group="billing", order="key", tiers=("10s", "30s", "2m", "10m"), attempts=5, timeout="30s"
)
async def bill(event: ModelCall, ctx: Context) -> None:
    """Gets model calls only; other events count as done. A run's events come in order, also across retries."""
    try:
        sent, received = await price_of(event.model)
    except KeyError:
        raise Reject(f"there is no price for model {event.model}") from None
    except ConnectionError as error:
        raise Retry(f"the price service does not answer: {error}", after="20s") from error
    dollars = (event.input_tokens * sent + event.output_tokens * received) / 1e6
    await ctx.emit("billing.charges", ctx.key, {"run": ctx.run_id, "call": ctx.event_id, "dollars": round(dollars, 6)})


@app.subscribe("billing.charges", group="books", value="json", tiers=("1m",), attempts=3)
def book(charge: dict[str, Any], ctx: Context) -> None:
    """A plain `def` runs in a thread. The idempotency key is the same on every attempt: give it to whoever must act once."""
    ctx.log.info("booked", run=charge["run"], dollars=charge["dollars"], once=ctx.idempotency_key)
