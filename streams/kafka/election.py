"""The election of a leader among processes, by membership in a Kafka consumer group.

The group consumes one topic of one partition: the member that is assigned the partition leads. No
message is read. A member that closes gives up the lead at once; a killed or disconnected one loses
it when its session expires. Until then the group admits no member and has no leader. A deposed
leader may learn of it late, so work that must not run twice needs its own fence.

A thread polls without a pause. kafka-python 3.0.12 discards a join that is completed between two
polls and sends another (`BaseCoordinator.join_group_async`), which begins a rebalance anew: members
that poll rarely can keep each other joining for minutes, without a leader. A poll raises an error
that passes where a refresh of metadata fails while the group's coordinator is looked for
(`BaseCoordinator.ensure_coordinator_ready_async`): the thread polls again.
"""

import logging
import threading
import time
from collections.abc import Collection

from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor

from streams.contract.errors import BrokerUnavailable
from streams.kafka.refusals import connecting, partitions_of, translated
from streams.kafka.settings import BrokerSettings

SESSION_S = 10.0
TOPIC_S = 10.0  # to wait for a topic that was just created
POLL_MS = 250
CLOSE_S = 5.0  # for the thread to leave the group; it is not waited for longer
ASKED_S = 300.0  # a leader that does not ask for so long gives up the lead

log = logging.getLogger(__name__)


class Membership(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """The partitions that the group has assigned to this member; None until it has joined."""

    def __init__(self) -> None:
        self.assigned: Collection[TopicPartition] | None = None

    def on_partitions_revoked(self, _revoked: Collection[TopicPartition]) -> None:
        self.assigned = None

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        self.assigned = assigned


class Election:
    """One member of the election; ask `leads` repeatedly to stay in the group."""

    def __init__(
        self, settings: BrokerSettings, group: str, topic: str, asked_s: float = ASKED_S
    ) -> None:
        self._settings, self._asked_s = settings, asked_s
        self._membership = Membership()
        with connecting(settings):
            self._consumer = KafkaConsumer(
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
            self._consumer.subscribe([topic], listener=self._membership)
            try:  # a member that joins before the topic exists never gets the partition
                partitions_of(self._consumer, settings, topic, time.monotonic() + TOPIC_S)
            except BaseException:
                self._consumer.close(timeout_ms=500)
                raise
        self._leading = False
        self._failure: BaseException | None = None
        self._asked = time.monotonic()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._stay, name="election", daemon=True)
        self._thread.start()

    def leads(self) -> bool:
        """Return whether this member leads; raise BrokerUnavailable if that is unknown."""
        self._asked = time.monotonic()
        if self._failure is not None:
            raise self._failure
        return self._leading

    def another_leads(self) -> bool:
        """Return whether another member leads; False while the group has no leader."""
        assigned = self._membership.assigned
        return assigned is not None and not assigned

    def _stay(self) -> None:
        """Poll until `close`, then leave the group: no other thread may touch the consumer. A
        process that no longer asks leaves it, too: it may hang."""
        try:
            with translated(self._settings):
                while not self._ending.is_set():
                    if time.monotonic() - self._asked > self._asked_s:
                        raise BrokerUnavailable(f"nobody asked for {self._asked_s:.0f} s who leads")
                    if mine := self._consumer.assignment():
                        self._consumer.pause(*mine)  # no message is read
                    try:
                        self._consumer.poll(timeout_ms=POLL_MS)
                    except kafka_errors.RetriableError as exc:  # of a refused connection, seldom
                        log.debug("the election asks again: %r", exc)
                        self._leading = False
                        self._ending.wait(POLL_MS / 1000)
                        continue
                    expired = self._consumer._coordinator.heartbeat.session_timeout_expired()
                    self._leading = bool(self._consumer.assignment()) and not expired
        except Exception as exc:  # the next `leads` raises it
            self._failure = exc
        finally:
            self._leading = False
            try:
                self._consumer.close(timeout_ms=2000)
            except kafka_errors.KafkaError as exc:
                log.warning("leaving the election failed, the session will expire: %s", exc)

    def close(self) -> None:
        """Leave the group, so that another member can lead at once."""
        self._ending.set()
        self._thread.join(CLOSE_S)
