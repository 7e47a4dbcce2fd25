"""A Faust message as a dead letter: its original bytes and headers, its position, and what went wrong."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.model.cluster import Headers
from pipeline.model.errors import CodecError
from pipeline.model.headers import DeliveryHeaders, ErrorInfo, clip_error, dead_letter_headers, producer_headers
from pipeline.model.secret_shapes import mask_secrets

if TYPE_CHECKING:
    from faust.types import TopicT

log = logging.getLogger(__name__)

DELIVERY_TIMEOUT_S = 60.0


def error_info(error: BaseException) -> ErrorInfo:
    """The error as headers carry it: class "undecodable" for bytes that are wrong, "handler" for anything else.

    What looks like a secret is masked; texts of our own folds quote no values.
    """
    stack = mask_secrets("".join(traceback.format_exception(error)))
    error_class = "undecodable" if isinstance(error, CodecError) else "handler"
    return clip_error(ErrorInfo(error_class, type(error).__name__, mask_secrets(str(error)), stack))


def headers_of(message: Any, group: str, error: BaseException) -> Headers:
    """The dead letter's headers for a Faust message."""
    kept = message.headers or ()
    pairs: Iterable[tuple[str, bytes | None]] = kept.items() if isinstance(kept, Mapping) else kept
    at_ms = int((message.timestamp or 0) * 1_000)
    delivery = DeliveryHeaders(
        attempt=1,
        hop=1,
        epoch=0,
        origin_topic=message.topic,
        origin_partition=message.partition,
        origin_offset=message.offset,
        origin_timestamp_ms=at_ms,
        group=group,
        first_failed_ms=at_ms,
        error=error_info(error),
    )
    return dead_letter_headers(producer_headers(list(pairs)), delivery)


def tell(message: Any, error: BaseException) -> None:
    """Log the failure with its position."""
    where = (message.topic, message.partition, message.offset)
    log.error("%s [%d] @ %d is a dead letter: %s: %s", *where, type(error).__name__, error)


async def dead_letter(topic: TopicT, message: Any, group: str, error: BaseException) -> None:
    """Write the dead letter, on the record's own partition, and wait until Kafka has it.

    Raises when it can't be written: then the offset is not done.
    """
    tell(message, error)
    headers: Any = headers_of(message, group, error)
    sent = topic.send_soon(key=message.key, value=message.value, partition=message.partition, headers=headers)
    await asyncio.wait_for(sent, DELIVERY_TIMEOUT_S)
