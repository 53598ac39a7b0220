"""What faust-streaming 0.15.3 needs before a worker can use it.

Faust's driver for librdkafka, `confluent`, is unfit: docs/decisions.md, decision 31.

1. Full queues. While some are full Faust asks for the other partitions alone and waits a second for
   those.
2. Livelocks. Its detector, which only logs, ends the consumer where an assignment is new.
3. Tables. Its start waits a second for an application's tables; a worker has none.
4. Sensors. It warns at each start and rebalance that there are none.
"""

import asyncio
import logging
from typing import Any

FULL_S = 0.02  # between two looks while the queue of a partition is full


def patch_app(app: Any) -> None:
    """Change one application."""
    consumer, usual = app.consumer, app.consumer._wait_next_records

    async def wait(timeout_s: float) -> Any:
        if not consumer._buffered_partitions:
            return await usual(timeout_s)
        if consumer.flow_active and not consumer._get_active_partitions():
            await asyncio.sleep(FULL_S)
            return {}, set()
        return await usual(min(timeout_s, FULL_S))

    async def nothing(*_given: object) -> None:
        return None

    consumer._wait_next_records, consumer.verify_all_partitions_active = wait, nothing
    app.tables.sleep = nothing  # they sleep nowhere else
    silent = logging.getLogger("faust.app.base")
    silent.addFilter(lambda record: "Missing sensor state" not in record.msg)
