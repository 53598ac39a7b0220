"""`tidewheel train`: a request for a run, on `rounds`."""

import time
from contextlib import closing

from streams.contract.documents import RoundEvent
from streams.contract.topics import ROUNDS, topic_name
from streams.kafka.settings import BrokerSettings


def ask_for_run(broker: BrokerSettings, task: str, reason: str) -> str:
    """Request a run on `rounds`; return a line for the user."""
    from streams.kafka.producer import Producer

    asked = f" ({reason})" if reason else ""
    reason = f"manual: {reason}" if reason else "manual"
    event = RoundEvent(run="", kind="asked", time_us=time.time_ns() // 1000, reason=reason)
    with closing(Producer(broker)) as producer:
        producer.put(topic_name(task, ROUNDS), b"by-hand", event.encode())
    return f"requested a run of {task}{asked}; the controller starts it when none is active"
