"""Plays devices in wall time: `python -m tests.bench.streams.feed.live PLAN SPEED`.

Event time runs SPEED times as fast as the clock, so that windows close more often than every 30 s a
device. Each device sends its messages at an even pace, the devices one after the other. Prints, as
JSON, [device, window, seconds since 1970] for each window: when the broker had acknowledged the
message that closes it.
"""

import json
import sys
import time

import numpy as np

from streams.contract.events.records import encode_events
from tests.bench.streams.feed.generator import Sender, Source
from tests.bench.streams.feed.plan import Plan

Closing = tuple[str, int, float]


def schedule(plan: Plan, speed: float) -> list[tuple[float, int, int]]:
    """(seconds from the start, device's number, round) of each message, in order."""
    period_s = plan.per_message * plan.hop_us / 1e6 / speed
    return sorted(
        ((round_ + number / plan.devices) * period_s, number, round_)
        for round_ in range(plan.rounds)
        for number in range(plan.devices)
    )


def closed_by(plan: Plan, number: int, round_: int) -> list[int]:
    """The windows of a device (their starts) that the message of this round closes."""
    task = plan.load_task()
    lateness_us = round(task.lateness_s * 1e6)
    span_us = 2 * task.window_us + lateness_us
    first = max(0, round_ - span_us // (plan.per_message * plan.hop_us) - 1)
    times = [plan.times_us(number, r) for r in range(first, round_ + 1)]
    starts = np.unique(np.concatenate(times) // task.window_us) * task.window_us
    before = int(times[-2][-1]) if round_ else 0
    ends = starts + task.window_us + lateness_us
    return [int(s) for s, end in zip(starts, ends, strict=True) if before <= end < times[-1][-1]]


def main() -> None:
    plan, speed = Plan.from_argv(), float(sys.argv[2])
    source, sender = Source(plan.load_task(), plan.per_message), Sender(plan.bootstrap)
    messages = [(due_s, n, r, closed_by(plan, n, r)) for due_s, n, r in schedule(plan, speed)]
    closing: list[tuple[int, str, list[int]]] = []
    began = time.monotonic()
    for due_s, number, round_, starts in messages:
        times = plan.times_us(number, round_)
        batch = source.events(plan.device(number), round_ * plan.per_message, times)
        message = encode_events(batch)
        time.sleep(max(0.0, began + due_s - time.monotonic()))
        sent = sender.send(plan.topic, *message)
        closing.append((sent, batch.device, starts))
    sender.finish()
    found: list[Closing] = [
        (device, start, sender.acknowledged[sent])
        for sent, device, starts in closing
        for start in starts
    ]
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
