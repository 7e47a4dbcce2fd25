"""Stream views: run summaries and rates as Faust agents in their own process, and our topics for agents of your own."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.views.avro import AvroTopic, avro_topic
    from pipeline.views.fetching import HoldingApp
    from pipeline.views.registry import open_codec

__all__ = ["AvroTopic", "HoldingApp", "avro_topic", "open_codec"]

_HOME = {"AvroTopic": "avro", "HoldingApp": "fetching", "avro_topic": "avro", "open_codec": "registry"}


def __getattr__(name: str) -> Any:
    """Resolved on first use, so that importing the package imports neither the codec nor Faust."""
    if name in _HOME:
        return getattr(import_module(f"pipeline.views.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
