"""Leader election among processes, by membership in a Kafka consumer group.

The group consumes one topic of one partition: the member that is assigned the partition leads. No
message is read. A member that closes gives up the lead at once; a killed or disconnected one loses
it when its session expires. A deposed leader may learn of it late, so work that must not run twice
needs its own fence.
"""

import logging
import time

from kafka import KafkaConsumer
from kafka import errors as kafka_errors
from kafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor

from streams.kafka.refusals import partitions_of, translated
from streams.kafka.settings import BrokerSettings

SESSION_S = 10.0
TOPIC_S = 10.0  # to wait for a topic that was just created

log = logging.getLogger(__name__)


class Election:
    """One member of the election; call `leads` repeatedly to stay in the group."""

    def __init__(self, settings: BrokerSettings, group: str, topic: str) -> None:
        self._settings = settings
        with translated(settings):
            self._consumer = KafkaConsumer(
                topic,
                **settings.client_options(),
                group_id=group,
                partition_assignment_strategy=[StickyPartitionAssignor],  # the leader stays
                enable_auto_commit=False,
                allow_auto_create_topics=False,
                session_timeout_ms=int(SESSION_S * 1000),
                heartbeat_interval_ms=2000,
                reconnect_backoff_max_ms=2000,
                metadata_max_age_ms=5_000,  # to find a new topic soon
                bootstrap_timeout_ms=5_000,
            )
            try:  # a member that joins before the topic exists never gets the partition
                partitions_of(self._consumer, settings, topic, time.monotonic() + TOPIC_S)
            except BaseException:
                self._consumer.close(timeout_ms=500)
                raise

    def leads(self) -> bool:
        """Return whether this member leads; raise BrokerUnavailable if that is unknown."""
        with translated(self._settings):
            if mine := self._consumer.assignment():
                self._consumer.pause(*mine)
            self._consumer.poll(timeout_ms=50)
            return bool(self._consumer.assignment())

    def close(self) -> None:
        """Leave the group, so that another member can lead at once."""
        try:
            self._consumer.close(timeout_ms=2000)
        except kafka_errors.KafkaError as exc:
            log.warning("leaving the election failed, the session will expire: %s", exc)
