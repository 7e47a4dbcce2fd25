"""Stream views: run summaries and rates as Faust agents in their own process, and our topics for agents of your own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.views.avro import AvroTopic, avro_topic
    from pipeline.views.registry import open_codec

__all__ = ["AvroTopic", "avro_topic", "open_codec"]


def __getattr__(name: str) -> Any:
    """Resolved on first use, so that importing the package imports neither the codec nor Faust."""
    if name in __all__:
        from pipeline.views import avro, registry

        return getattr(registry if name == "open_codec" else avro, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
