"""Publishing until the broker has everything."""

import asyncio
import logging
from collections.abc import Sequence

from streams.contract.errors import BrokerUnavailable
from streams.worker.commit.publications import Outgoing
from streams.worker.commit.work import Broker

AT_ONCE = 2000  # messages: a publication that times out is repeated whole

log = logging.getLogger(__name__)


async def publish_all(broker: Broker, messages: Sequence[Outgoing]) -> None:
    """Send until the broker has all: what is in the store is not to be withheld."""
    wait_s, at = 0.25, 0
    while at < len(messages):
        try:
            await broker.publish(messages[at : at + AT_ONCE])
            wait_s, at = 0.25, at + AT_ONCE
        except BrokerUnavailable as exc:
            wait_s = min(2 * wait_s, 5.0)
            log.warning("%s; trying again in %.1f s", exc, wait_s)
            await asyncio.sleep(wait_s)
