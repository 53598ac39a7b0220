"""One at a time, of several processes that do the same: by membership in a Kafka group.

The group shares one topic of one partition, so that one member has it and the others have nothing.
Nothing is read. A member that ends gives it up at once; one that was killed, or cut off, loses it
when its session is over, and another has it then. Whoever lost it hears so when it can: what must
not be done twice needs a fence of its own beside this.
"""

import logging
import time

from kafka import KafkaConsumer
from kafka import errors as kafka_errors
from kafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor

from streams.kafka.refusals import absent, unavailable
from streams.kafka.settings import BrokerSettings

SESSION_S = 10.0
TOPIC_S = 10.0  # for a topic that was just created

log = logging.getLogger(__name__)


class Election:
    """One member's; `leads` has to be asked again and again."""

    def __init__(self, settings: BrokerSettings, group: str, topic: str) -> None:
        self._settings = settings
        try:
            self._consumer = KafkaConsumer(
                topic,
                **settings.client_options(),
                group_id=group,
                partition_assignment_strategy=[StickyPartitionAssignor],  # who leads goes on
                enable_auto_commit=False,
                allow_auto_create_topics=False,
                session_timeout_ms=int(SESSION_S * 1000),
                heartbeat_interval_ms=2000,
                reconnect_backoff_max_ms=2000,
                metadata_max_age_ms=5_000,  # a topic that was not there yet is found soon
                bootstrap_timeout_ms=5_000,
            )
            self._await(topic)
        except kafka_errors.KafkaError as exc:
            raise unavailable(settings, exc) from exc

    def _await(self, topic: str) -> None:
        """Who joins before the topic is known gets nothing, also where nobody else is."""
        deadline = time.monotonic() + TOPIC_S
        while not self._consumer.partitions_for_topic(topic):
            if time.monotonic() > deadline:
                self._consumer.close(timeout_ms=500)
                raise absent(self._settings, topic)
            time.sleep(0.1)

    def leads(self) -> bool:
        """Whether this member has the partition; BrokerUnavailable when nobody can say."""
        try:
            if mine := self._consumer.assignment():
                self._consumer.pause(*mine)
            self._consumer.poll(timeout_ms=50)
            return bool(self._consumer.assignment())
        except kafka_errors.KafkaError as exc:
            raise unavailable(self._settings, exc) from exc

    def close(self) -> None:
        """Leave: another may lead at once."""
        try:
            self._consumer.close(timeout_ms=2000)
        except kafka_errors.KafkaError as exc:
            log.warning("%s", exc)
