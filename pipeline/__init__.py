"""The Kafka-native pipeline for AI-agent runs and their background work.

    app = Pipeline("support")
    async with app.recorder() as recorder: ...          # publish run events
    @app.subscribe("agent.run.events", group="billing")  # process them
"""

from pipeline.app import Pipeline, Retries
from pipeline.model.errors import ConfigurationError, PipelineError
from pipeline.model.events import (
    Approval,
    Memory,
    Message,
    ModelCall,
    RunCancelled,
    RunCompleted,
    RunEvent,
    RunFailed,
    RunStarted,
    Step,
    ToolCall,
    ToolResult,
    UnknownEvent,
)
from pipeline.model.outcome import Emit, Reject, Retry, Warn
from pipeline.model.policies import Backoff, BatchPolicy, FlowPolicy
from pipeline.settings import Settings
from pipeline.worker.context import Context
from pipeline.worker.routing import Router

__all__ = [
    "Approval",
    "Backoff",
    "BatchPolicy",
    "ConfigurationError",
    "Context",
    "Emit",
    "FlowPolicy",
    "Memory",
    "Message",
    "ModelCall",
    "Pipeline",
    "PipelineError",
    "Reject",
    "Retries",
    "Retry",
    "Router",
    "RunCancelled",
    "RunCompleted",
    "RunEvent",
    "RunFailed",
    "RunStarted",
    "Settings",
    "Step",
    "ToolCall",
    "ToolResult",
    "UnknownEvent",
    "Warn",
]
