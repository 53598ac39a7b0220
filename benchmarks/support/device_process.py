"""Processes of a device with a clock in them.

    python -m benchmarks.support.device_process answers OUT MODEL WORDS...
    python -m benchmarks.support.device_process pump TASK BOOTSTRAP EVENTS

answers: `tidewheel WORDS` (an `edge run`), until SIGTERM. Each segment is answered by the agent and
by a bare call of onnxruntime with the same weights on one thread; the one that comes first is
timed: three of four times the agent's. So each is the first call after a pause in which the
processor forgets, and both see the same machine. OUT gets rows of CLOCK_MONOTONIC, whether it is
the bare call, and seconds, as a numpy file.

pump: events that are ready go through recorder, spool and uplink; then the same messages go through
a kafka-python producer with the same options and as many in flight. The first clock runs from the
first event to the spool's settling of the last, the second from the first message to the last
acknowledgement. Prints {"events", "messages", "device_s", "bare_s"}.
"""

import itertools
import json
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edge_client.uplink.messages import of_events
from streams.contract.documents import DeviceState
from streams.contract.events.messages import Headers, task_layout
from streams.contract.task import Task, load_task
from streams.contract.topics import EVENTS, topic_name
from streams.kafka.settings import BrokerSettings

BARE_EVERY = 4
PENDING = 60_000_000  # bytes in the spool at most: what is sustained does not let it grow
AHEAD = 5000  # events that wait in memory at most
LAST = 2048  # events that wait for others at the end

Message = tuple[str, bytes, bytes, Headers]


def answers(out: Path, model: Path, words: list[str]) -> None:
    import onnxruntime as ort

    from compose.cli.main import main
    from edge_client.inference.loop import InferenceLoop
    from edge_client.sources.replay import Cut

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    name, timed, turns = session.get_inputs()[0].name, array("d"), itertools.count(1)
    answer, clock = InferenceLoop.answer, time.perf_counter

    def measured(loop: InferenceLoop, cut: Cut) -> None:
        def bare() -> None:
            session.run(None, {name: cut.segment[None]})

        is_bare, at = next(turns) % BARE_EVERY == 0, time.monotonic()
        both: list[Callable[[], None]] = [lambda: answer(loop, cut), bare]
        first, second = reversed(both) if is_bare else both
        began = clock()
        first()
        timed.extend((at, is_bare, clock() - began))
        second()

    InferenceLoop.answer = measured  # type: ignore[assignment, method-assign]
    sys.argv = ["tidewheel", *words]
    try:
        main()
    finally:
        np.save(out, np.array(timed).reshape(-1, 3))


class Kept:
    """A producer that remembers the messages on `events`."""

    def __init__(self, settings: BrokerSettings, events: str) -> None:
        from streams.kafka.producer import Producer

        self._producer, self._events = Producer(settings), events
        self.messages: list[Message] = []

    def send(
        self,
        topic: str,
        key: bytes,
        value: bytes,
        headers: Headers,
        done: Callable[[Exception | None], None],
    ) -> None:
        if topic == self._events:
            self.messages.append((topic, key, value, headers))
        self._producer.send(topic, key, value, headers, done)

    def close(self, timeout_s: float) -> None:
        self._producer.close(timeout_s)


def pump(task: Task, settings: BrokerSettings, count: int) -> None:
    from edge_client.agent import SWITCH_S

    sys.setswitchinterval(SWITCH_S)  # as an agent does, for both
    kept = Kept(settings, topic_name(task.id, EVENTS))
    device_s = _through_the_device(task, kept, count)
    found = {"events": count, "messages": len(kept.messages), "device_s": device_s}
    print(json.dumps({**found, "bare_s": _bare(settings, kept.messages)}))


def _through_the_device(task: Task, kept: Kept, count: int) -> float:
    from edge_client.spool.queue import Spool
    from edge_client.spool.writer import Event, SpoolWriter
    from edge_client.uplink.uplink import Uplink
    from streams.segments.segmentation import segments_of

    cuts = list(segments_of(task.readings("pump"), task))
    hop_us = round(task.segment.hop / (task.rate_hz or 1.0) * 1e6)
    events = []
    for number in range(count):
        _, _, segment, truth = cuts[number % len(cuts)]
        label = truth if number % 10 == 0 else None
        event = Event(number * hop_us, "1-aaaaaaaa", segment[:, 0].copy(), label, segment)
        events.append(event)
    size = 60 + (events[0].segment.nbytes if task.upload == "segment" else 0)
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder) / "spool")
        writer = SpoolWriter(task, spool)
        state = DeviceState(
            device="pump", task=task.name, time_us=0, epoch=spool.epoch, active="", produced=0,
            delivered=0, pending=0,
        )  # fmt: skip
        messages = of_events(task_layout(task), "pump", spool)
        uplink = Uplink(task.id, "pump", spool, messages, lambda: kept, lambda: state)
        writer.start()
        uplink.start()
        while not uplink.connected:
            time.sleep(0.01)
        began = time.perf_counter()
        for number, event in enumerate(events):
            writer.put(event)
            while number % 100 == 0 and (
                writer.waiting > AHEAD
                or (number % 1000 == 0 and spool.account().pending * size > PENDING)
            ):
                time.sleep(0.001)
        seconds = 0.0
        while (delivered := spool.account().delivered) < count:
            if not seconds and delivered >= count - LAST:
                seconds = (time.perf_counter() - began) * count / delivered
            if spool.account().dropped or uplink.error or writer.error:
                raise SystemExit(f"{spool.account()}, {uplink.error}, {writer.error}")
            time.sleep(0.002)
        seconds = seconds or time.perf_counter() - began
        writer.stop()
        uplink.stop(1.0)
    return seconds


def _bare(settings: BrokerSettings, messages: list[Message]) -> float:
    from kafka import KafkaProducer

    from edge_client.uplink.uplink import IN_FLIGHT
    from streams.kafka.producer import Producer

    producer = KafkaProducer(**settings.client_options(), **Producer.OPTIONS)
    producer.partitions_for(messages[0][0])
    free, failed = threading.Semaphore(IN_FLIGHT), list[Exception]()
    began = time.perf_counter()
    for topic, key, value, headers in messages:
        free.acquire()
        future = producer.send(topic, value=value, key=key, headers=headers)
        future.add_callback(lambda _: free.release())
        future.add_errback(failed.append)
    producer.flush()
    seconds = time.perf_counter() - began
    producer.close()
    if failed:
        raise SystemExit(f"the broker did not take all messages: {failed[0]}")
    return seconds


if __name__ == "__main__":
    if sys.argv[1] == "answers":
        answers(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    else:
        pump(
            load_task(sys.argv[2]),
            BrokerSettings(bootstrap=sys.argv[3]),
            int(sys.argv[4]),
        )
