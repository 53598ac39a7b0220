"""Seeking to committed offsets where there are none yet, for aiokafka.

Faust throws away what a fetch brings while a rebalance goes on, and then seeks to the committed
offsets, so that it comes again. aiokafka leaves a partition where it is that has no committed
offset, or 0: its messages would never come again, and the commit of a later one would pass them.
"""

from collections.abc import Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer

_to_committed = AIOKafkaConsumer.seek_to_committed


async def seek_to_committed(self: Any, *partitions: Any) -> Mapping[Any, int | None]:
    """As aiokafka's, and to the beginning where nothing is committed."""
    found: Mapping[Any, int | None] = await _to_committed(self, *partitions)
    if fresh := [partition for partition, offset in found.items() if not offset]:
        await self.seek_to_beginning(*fresh)
    return found


def install() -> None:
    """Let aiokafka's consumers seek as above."""
    AIOKafkaConsumer.seek_to_committed = seek_to_committed
