"""What a worker asks of its topic beside messages: first and end offsets, and what devices said."""

import asyncio
import logging
import time
from contextlib import closing
from dataclasses import dataclass

from streams.contract.errors import BrokerUnavailable
from streams.contract.topics import EVENTS, topic_name, worker_group
from streams.fleet.following import read_view
from streams.kafka.admin import GroupPosition, group_positions
from streams.kafka.reader import Reader, partition_of
from streams.kafka.settings import BrokerSettings
from streams.worker.commit.hole_keeper import Survey

PAUSE_S = 1.0
READ_S = 15.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TopicSurvey:
    """Asks about `events` of one task."""

    broker: BrokerSettings
    task: str

    async def positions(self) -> dict[int, GroupPosition]:
        """Return the workers' position in each partition; wait for an unavailable broker."""
        while True:
            try:
                return await asyncio.to_thread(self._positions)
            except BrokerUnavailable as exc:
                log.warning("%s; trying again in %.0f s", exc, PAUSE_S)
                await asyncio.sleep(PAUSE_S)

    def survey(self, partition: int) -> Survey:
        """Return the partition's end, and the events that its devices had delivered before. Raises
        BrokerUnavailable."""
        states = read_view(self.broker, self.task).devices.values()
        positions = self._positions()
        delivered = {
            (state.device, state.epoch): state.produced - state.pending
            for state in states
            if partition_of(state.device, len(positions)) == partition
        }
        return positions[partition].end, delivered

    def first_in(self, partition: int, begin: int, end: int) -> int | None:
        """Return the offset of the first message from `begin` to before `end`, after which there is
        another one; None if there are only markers of transactions. Raises BrokerUnavailable."""
        topic = topic_name(self.task, EVENTS)
        deadline = time.monotonic() + READ_S
        with closing(Reader(self.broker, [topic], from_beginning=False)) as reader:
            reader.seek(topic, partition, begin)
            while time.monotonic() < deadline:
                found = [m.offset for m in reader.poll() if m.partition == partition]
                if found:
                    return found[0] if found[0] < end else None
        raise BrokerUnavailable(f"{topic}-{partition} gave nothing from {begin} in {READ_S:.0f} s")

    def _positions(self) -> dict[int, GroupPosition]:
        topic, group = topic_name(self.task, EVENTS), worker_group(self.task)
        return {found.partition: found for found in group_positions(self.broker, group, topic)}
