"""Record an agent's run with asyncio: `PIPELINE_BROKER=host:port python examples/record_run.py`."""

from __future__ import annotations

import asyncio

from pipeline import Pipeline


async def main() -> None:
    app = Pipeline("support")
    async with (
        app.recorder() as recorder,
        recorder.run(agent="support", tenant="acme", input="Where is my refund?") as run,
    ):
        async with run.model_call("gpt-large") as call:
            call.usage(input_tokens=1200, output_tokens=340)
        async with run.tool_call("search", arguments={"q": "refund"}) as tool:
            tool.result("sent on Monday")
        await run.message("assistant", "It was sent on Monday.")
        run.output("It was sent on Monday.")
    print(run.run_id)


if __name__ == "__main__":
    asyncio.run(main())
