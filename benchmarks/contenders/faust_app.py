"""The worker's job in plain Faust: `python -m benchmarks.contenders.faust_app PLAN FOLDER`.

As its documentation has it: an agent over the topic's messages, a table by device for what is open
(in memory, with a changelog topic; its values are bytes), a second agent on a channel that takes
closed windows in batches as long as the worker's flush, and Faust's own commits. The program closes
windows by event time: Faust closes those of a windowed table by the clock, and so tears all windows
of a backlog. What is open of a device is one entry: each message of the changelog costs a turn of
Faust's producer. The short job alone: a crash loses the windows that are on the channel.
"""

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import faust

from benchmarks.contenders.outlet import Meter, Outlet, Piece, pieces_of
from benchmarks.support.backlog import Plan
from streams.contract.task import Task

FLUSH_S, MANY = 0.3, 100_000


class Device:
    """What the table holds of a device: encoded pieces by window, and the newest event time."""

    def __init__(self, data: bytes) -> None:
        found = pickle.loads(data) if data else ({}, 0)
        self._open: dict[int, list[bytes]] = found[0]
        self._watermark: int = found[1]

    def encode(self) -> bytes:
        return pickle.dumps((self._open, self._watermark), pickle.HIGHEST_PROTOCOL)

    def add(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            self._open.setdefault(piece.window, []).append(piece.encode())
            self._watermark = max(self._watermark, piece.newest)

    def closed(self, task: Task) -> list[list[bytes]]:
        """Take out the windows whose end and lateness have passed."""
        before = self._watermark - task.window_us - round(task.lateness_s * 1e6)
        return [self._open.pop(start) for start in sorted(self._open) if start <= before]


def make_app(plan: Plan, folder: Path) -> faust.App:
    task, meter = plan.load_task(), Meter()
    outlet = Outlet(plan, folder, meter, whole=False)
    app = faust.App(
        f"faust-{folder.name}", broker=f"kafka://{plan.bootstrap}", datadir=folder / "data",
        topic_partitions=plan.partitions, web_enabled=False,
    )  # fmt: skip
    topic = app.topic(plan.topic, key_type=bytes, value_type=bytes, value_serializer="raw")
    table = app.Table("open", key_type=bytes, value_type=bytes, default=bytes)
    channel = app.channel(maxsize=0)

    @app.agent(topic)  # type: ignore[untyped-decorator,unused-ignore]
    async def take_in(stream: Any) -> None:
        async for event in stream.events():
            meter.begin()
            headers = event.headers.items() if isinstance(event.headers, dict) else event.headers
            device = Device(table[event.key])
            device.add(pieces_of(task, event.key, event.value, headers))
            for window in device.closed(task):
                await channel.send(value=window)
            table[event.key] = device.encode()

    @app.agent(channel)  # type: ignore[untyped-decorator,unused-ignore]
    async def hand_over(stream: Any) -> None:
        async for windows in stream.take(MANY, within=FLUSH_S):
            outlet.put([[Piece.decode(data) for data in window] for window in windows])
            if outlet.rows >= plan.closed_rows:
                outlet.report()
                os._exit(0)  # Faust's own end takes long, and nothing of it is measured

    return app


if __name__ == "__main__":
    made = make_app(Plan.decode(sys.argv[1]), Path(sys.argv[2]))
    sys.argv = sys.argv[:1]
    faust.Worker(made, loglevel="WARN", redirect_stdouts=False).execute_from_commandline()
