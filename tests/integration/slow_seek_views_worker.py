"""A views worker that asks for committed offsets slowly, as on a busy cluster: a rebalance stays open for a second and a half."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from aiokafka import AIOKafkaConsumer

from pipeline.views import worker

ANSWER_S = 0.1
"""Per partition; Faust asks for one after the other, of four topics."""

_committed = AIOKafkaConsumer.committed


async def _slowly(self: AIOKafkaConsumer, partition: Any) -> Any:
    offset = await _committed(self, partition)
    await asyncio.sleep(ANSWER_S)
    return offset


if __name__ == "__main__":
    AIOKafkaConsumer.committed = _slowly
    sys.exit(worker.main())
