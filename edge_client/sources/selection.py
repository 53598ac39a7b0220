"""Which source a device reads: its task's readings, standard input, or an MQTT topic.

The task says whether its readings are recorded or live; standard input and MQTT are always live.
"""

import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.sources.cuts import Skip, Source
from edge_client.sources.live import Live
from edge_client.sources.replay import Replay
from edge_client.sources.stdin import LineReadings, Lines
from streams.contract.task import Reading, Readings, Task

if TYPE_CHECKING:
    from edge_client.settings import EdgeSettings


def open_source(
    task: Task,
    settings: "EdgeSettings",
    folder: Path,
    *,
    resume_after_us: int | None,
    stop: threading.Event,
    skip: Skip,
) -> Source:
    """Return the source that the settings name; nothing is read yet."""
    if settings.source == "stdin":
        stream = open(  # noqa: SIM115, read until the process ends
            sys.stdin.fileno(), encoding="utf-8", errors="replace", closefd=False
        )
        lines = LineReadings(task, Lines(stream, stop), skip)
        return Live(task, lambda: lines, stop, skip)
    if settings.mqtt is not None:
        from edge_client.sources.mqtt import MqttSource  # an extra

        mqtt = MqttSource(settings.mqtt, task, settings.device, stop, skip)
        return Live(task, lambda: mqtt, stop, skip)

    def readings() -> Iterable[Reading | Readings]:
        return task.readings(settings.device)

    if task.source == "live":
        return Live(task, readings, stop, skip)
    return Replay(
        task, readings, folder, speed=settings.speed, passes=settings.passes,
        resume_after_us=resume_after_us, stop=stop, skip=skip,
    )  # fmt: skip
