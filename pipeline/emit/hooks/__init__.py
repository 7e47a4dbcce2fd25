"""Hooks: adapters that record the runs of agent frameworks through the frameworks' own hooks, and the hook that queues work.

The adapters are in the modules `openai_agents`, `langchain` and `pydantic_ai`, and need the extra of that name.
"""

from pipeline.emit.hooks.queueing import Enqueues, QueueHook, queue_hook
from pipeline.emit.hooks.watch import FinishedRun, HookOptions, HookStats, RunHook

__all__ = ["Enqueues", "FinishedRun", "HookOptions", "HookStats", "QueueHook", "RunHook", "queue_hook"]
