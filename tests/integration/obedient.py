"""The application under test: its handlers do what each record says, and write it to the ledger.

As a module (`tests.integration.obedient:app`) it is what the worker processes run, made from HARNESS_SPEC.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from pipeline import FlowPolicy, IsolationPolicy, Pipeline, Reject, Retry, Settings
from pipeline.codec import JsonCodec
from tests.integration.ledger import Ledger

SOURCE, GROUP, OUT = "events", "g", "out"
APP_NAME = "tests.integration.obedient:app"


async def _obey(value: dict[str, Any], ctx: Any, ledger: Ledger) -> None:
    """Do what the record says: `gate` (a file to wait for), `sleep`, `fails` (attempts that fail), `reject`."""
    ledger.mark("start", ctx)
    while "gate" in value and not os.path.exists(value["gate"]):
        await asyncio.sleep(0.02)
    if "sleep" in value:
        await asyncio.sleep(value["sleep"])
    _end(value, ctx, ledger)


def _obey_in_thread(value: dict[str, Any], ctx: Any, ledger: Ledger) -> None:
    ledger.mark("start", ctx)
    while "gate" in value and not os.path.exists(value["gate"]):
        time.sleep(0.02)
    if "sleep" in value:
        time.sleep(value["sleep"])
    _end(value, ctx, ledger)


def die(how: str) -> None:
    """Take the process with it: "exit", "segv", "hog" (more memory than any limit here), "oom" (killed from outside)."""
    if how == "exit":
        os._exit(7)
    if how == "segv":
        ctypes.string_at(0)
    if how == "oom":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hog":
        held = [bytearray(4 << 30)]
        raise AssertionError(f"nothing limits it: {len(held[0])} bytes")


KILLING_BYTES = b'{"kills": "the decoder"}'


def _decode_or_die(_codec: Any, _topic: str, data: bytes | None, _headers: Any = None) -> Any:
    """In the place of the JSON decoder: one value makes it crash, as a broken C extension would."""
    if data == KILLING_BYTES:
        ctypes.string_at(0)
    return json.loads(data or b"null")


def _end(value: dict[str, Any], ctx: Any, ledger: Ledger) -> None:
    if "dies" in value:
        ctx.log.warning("about to die")
        die(value["dies"])
    if value.get("reject"):
        ledger.mark("reject", ctx)
        raise Reject("the record says so")
    if "dies_later" in value and ctx.attempt > value.get("fails", 0):
        die(value["dies_later"])
    if ctx.attempt <= value.get("fails", 0):
        ledger.mark("fail", ctx)
        raise Retry("the record says so", after=value.get("after"))
    if value.get("emit"):
        ctx.emit(OUT, ctx.key, {"of": [ctx.partition, ctx.offset]})
        for part in range(1, value.get("parts", 1)):
            ctx.emit(OUT, f"{part}", {"of": [ctx.partition, ctx.offset], "part": part})
    ledger.mark("done", ctx)


def make_app(spec: dict[str, Any], ledger: Ledger | None = None) -> Pipeline:
    """An application from plain data: settings, arguments of `subscribe`, kind of handler, and where the ledger is."""
    app = Pipeline("t", settings=Settings(**spec["settings"]))
    ledger = ledger or Ledger(Path(spec["ledger"]))
    arguments = {"group": GROUP, "value": "json", **spec["subscribe"]}
    if "isolation" in arguments:
        arguments["isolation"] = IsolationPolicy(**arguments["isolation"])
    if spec.get("decoder") == "dies":
        JsonCodec.decode = _decode_or_die  # type: ignore[method-assign]
    if "flow" in arguments:
        arguments["flow"] = FlowPolicy(**arguments["flow"])
    if spec["kind"] == "def":

        @app.subscribe(SOURCE, **arguments)
        def plain(value: dict[str, Any], ctx: Any) -> None:
            _obey_in_thread(value, ctx, ledger)

    elif spec["kind"] == "def batch":

        @app.subscribe(SOURCE, **{"batch": 50, **arguments})
        def in_thread(values: list[dict[str, Any]], contexts: list[Any]) -> None:
            for value, ctx in zip(values, contexts, strict=True):
                _obey_in_thread(value, ctx, ledger)

    elif spec["kind"] == "batch":

        @app.subscribe(SOURCE, **{"batch": 50, **arguments})
        async def batch(values: list[dict[str, Any]], contexts: list[Any]) -> list[Any]:
            found = await asyncio.gather(*map(_obey, values, contexts, [ledger] * len(values)), return_exceptions=True)
            return list(found)

    else:

        @app.subscribe(SOURCE, **arguments)
        async def one(value: dict[str, Any], ctx: Any) -> None:
            await _obey(value, ctx, ledger)

    return app


def __getattr__(name: str) -> Any:
    if name == "app":
        spec = json.loads(os.environ["HARNESS_SPEC"])
        if spec.get("hidden_from_children") and sys.modules["__main__"].__spec__.name.endswith("child"):  # type: ignore[union-attr]
            raise AttributeError(name)
        return make_app(spec)
    raise AttributeError(name)
