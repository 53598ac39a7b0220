"""The loop of a recording waits for room; that of a sensor never does."""

import threading
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from edge_client.inference.loop import InferenceLoop
from edge_client.sources.replay import Cut
from edge_client.spool.writer import Event
from tests.rig.made_up.tiny_task import task

CUTS = 6


class Source:
    share_of_pass, passes_done = 0.0, 0

    def __iter__(self):  # type: ignore[no-untyped-def]
        for i in range(CUTS):
            segment = np.zeros(task.segment_shape, np.float32)
            yield Cut(1000 * i, 1000 * i + 999, 1000 * i, 1000 * i, segment, None)


@dataclass
class Engine:
    model: str = "1-a"
    latencies: deque[float] = field(default_factory=deque)

    def run(self, segment: np.ndarray) -> np.ndarray:
        return np.ones(3, np.float32)


class Slots:
    engine = Engine()


class NoCopy:
    def engine_for(self, base: Engine) -> Engine:
        return base


def test_it_waits_as_long_as_there_is_no_room_and_not_once_it_is_stopped() -> None:
    stop, put, looks = threading.Event(), list[Event](), list[int]()

    def full() -> bool:
        looks.append(len(put))
        if len(put) == 2 and len(looks) > 20:
            return False
        if len(put) == 4:
            stop.set()
        return len(put) in (2, 4)

    loop = InferenceLoop(
        task, "d0", Source(), Slots(), NoCopy(), put.append, lambda *_: None, stop, full  # type: ignore[arg-type]
    )  # fmt: skip
    loop.run()
    assert looks.count(2) > 10  # it was asked again until there was room
    assert len(put) >= 5  # what it had in hand when it was stopped is answered
