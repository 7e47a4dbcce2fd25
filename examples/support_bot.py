"""An agent service that records its runs. Needs the topic first (`pipeline topics apply billing:app`), then:

PIPELINE_BROKER=host:port python support_bot.py
"""

from __future__ import annotations

import asyncio

from pipeline import Pipeline
from pipeline.emit.recorder import AsyncRecorder

app = Pipeline("support")
QUESTIONS = {
    "Where is my refund?": "gpt-large",
    "Cancel my flight.": "gpt-small",
    "Do you sell gift cards?": "gpt-next",  # billing has no price for this one: a dead letter to look at
}


async def answer(recorder: AsyncRecorder, question: str, model: str) -> str:
    """One run. What happens inside the blocks is recorded; an exception is recorded too, and goes on."""
    async with recorder.run(agent="support", tenant="acme", input=question) as run:
        async with run.step("look it up"), run.tool_call("search", arguments={"q": question}) as tool:
            tool.result({"hits": 3})
        async with run.model_call(model, provider="example") as call:
            call.usage(input_tokens=1200, output_tokens=340)
            call.answer("It was sent on Monday.", finish_reason="stop")
        run.output("It was sent on Monday.")
    return run.run_id


async def main() -> None:
    async with app.recorder() as recorder:
        runs = await asyncio.gather(*(answer(recorder, question, model) for question, model in QUESTIONS.items()))
    print("\n".join(runs))


if __name__ == "__main__":
    asyncio.run(main())
