"""The same without asyncio: `PIPELINE_BROKER=host:port python examples/record_run_sync.py`."""

from __future__ import annotations

from pipeline import Pipeline


def main() -> None:
    app = Pipeline("support")
    with app.recorder() as recorder, recorder.run(agent="support", tenant="acme", input="Where is my refund?") as run:
        with run.model_call("gpt-large") as call:
            call.usage(input_tokens=1200, output_tokens=340)
        with run.tool_call("search", arguments={"q": "refund"}) as tool:
            tool.result("sent on Monday")
        run.message("assistant", "It was sent on Monday.")
        run.output("It was sent on Monday.")
    print(run.run_id)


if __name__ == "__main__":
    main()
