"""`tidewheel train`: requests a run from the controller, on `rounds`."""

import time

from streams.contract.documents import RoundEvent
from streams.contract.topics import ROUNDS, topic_name
from streams.kafka.producer import Producer
from streams.kafka.settings import BrokerSettings

KEY = b"by-hand"


def ask_for_run(broker: BrokerSettings, task: str, reason: str = "") -> str:
    """Request a run; return a line for the user. Raises BrokerUnavailable without a broker."""
    reason = f"by hand: {reason}" if reason else "by hand"
    event = RoundEvent(run="", kind="asked", time_us=time.time_ns() // 1000, reason=reason)
    producer = Producer(broker)
    try:
        producer.put(topic_name(task, ROUNDS), KEY, event.encode())
    finally:
        producer.close()
    return f"requested a run of {task}: {reason}; the controller starts it when none is active"
