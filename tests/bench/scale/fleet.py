"""What a fleet needs, from measured slopes alone: arithmetic without I/O."""

import math
from dataclasses import dataclass

DAY_S = 86_400


@dataclass(frozen=True)
class Fleet:
    """devices; events_per_s of each; events_per_message that a device sends together;
    events_sent: the share of the events that go to Kafka at all; window_s, lateness_s of the task;
    heartbeat_s between two states of a device;
    busy: the share of a core or a bound that is planned with."""

    devices: int = 1_000_000
    events_per_s: float = 1.0
    events_per_message: int = 1
    events_sent: float = 1.0
    window_s: float = 30.0
    lateness_s: float = 0.0
    heartbeat_s: float = 10.0
    busy: float = 0.5

    @property
    def rows_per_s(self) -> float:
        return self.devices * self.events_per_s * self.events_sent

    @property
    def messages_per_s(self) -> float:
        return self.rows_per_s / self.events_per_message

    @property
    def windows_per_s(self) -> float:
        """Of devices that have events in every window; with few events at most one an event."""
        return min(self.devices / self.window_s, self.rows_per_s)

    @property
    def open_messages(self) -> float:
        """Messages that wait for their windows: those of a window's time and lateness, or the one
        that a device sends more rarely."""
        wait_s = self.window_s + self.lateness_s
        return max(self.messages_per_s * wait_s, min(self.devices, self.rows_per_s * wait_s))


@dataclass(frozen=True)
class Per:
    """A cost per message, row and window: CPU seconds, or bytes."""

    message: float
    row: float
    window: float

    def rate(self, fleet: Fleet) -> float:
        """Per second of this fleet."""
        return (
            self.message * fleet.messages_per_s
            + self.row * fleet.rows_per_s
            + self.window * fleet.windows_per_s
        )


@dataclass(frozen=True)
class Slopes:
    """What was measured, in CPU seconds and bytes.

    worker, broker: CPU; worker_cores: of one worker that is always busy; topics: bytes that the
    broker keeps, store: bytes; commits_per_s: of all writers of one table together, at most;
    flush_s: between two commits of a worker that keeps up; device_bytes: growth of workers;
    worker_bytes: of one without devices; message_bytes: of a message that waits with one row,
    row_bytes: of each further row in it; buffer_bytes: of waiting messages that a worker takes;
    state_s, report_s: the controller's CPU for a state or a report; controller_bytes,
    controller_device_bytes: its memory; start_device_s: CPU of its start.
    """

    worker: Per
    broker: Per
    worker_cores: float
    topics: Per
    store: Per
    commits_per_s: float
    flush_s: float
    device_bytes: float
    worker_bytes: float
    message_bytes: float
    row_bytes: float
    buffer_bytes: float
    state_s: float
    report_s: float
    controller_bytes: float
    controller_device_bytes: float
    start_device_s: float


@dataclass(frozen=True)
class Need:
    """One line of the table: what, how much, its unit, and the formula in words."""

    what: str
    value: float
    unit: str
    formula: str


def workers_by_cpu(slopes: Slopes, fleet: Fleet) -> int:
    return math.ceil(slopes.worker.rate(fleet) / (slopes.worker_cores * fleet.busy))


def workers_by_buffer(slopes: Slopes, fleet: Fleet) -> int:
    """Workers whose buffers together hold the messages of the open windows."""
    return math.ceil(held_bytes(slopes, fleet) / (slopes.buffer_bytes * fleet.busy))


def held_bytes(slopes: Slopes, fleet: Fleet) -> float:
    """Bytes of the messages that wait for their windows."""
    further = fleet.events_per_message - 1
    return fleet.open_messages * (slopes.message_bytes + further * slopes.row_bytes)


def workers_needed(slopes: Slopes, fleet: Fleet) -> int:
    return max(1, workers_by_cpu(slopes, fleet), workers_by_buffer(slopes, fleet))


def workers_of_one_table(slopes: Slopes) -> int:
    """How many workers one table takes whose commits come every `flush_s`."""
    return max(1, math.floor(slopes.commits_per_s * slopes.flush_s))


def needs(slopes: Slopes, fleet: Fleet) -> list[Need]:
    """The lines for one fleet, in the order of the path of an event."""
    s, f = slopes, fleet
    workers, in_table = workers_needed(s, f), workers_of_one_table(s)
    controller = f.devices / f.heartbeat_s * s.state_s + f.windows_per_s * s.report_s
    return [
        Need("messages", f.messages_per_s, "a second", "events sent / events a message"),
        Need("windows", f.windows_per_s, "a second", "devices / window"),
        Need("workers by CPU", workers_by_cpu(s, f), "", "(messages x CPU a message + rows x CPU "
             "a row + windows x CPU a window) / (cores of a busy worker x share)"),
        Need("workers by buffer", workers_by_buffer(s, f), "", "messages of open windows x bytes "
             "of a waiting message / (buffer x share)"),
        Need("workers", workers, "", "the larger of both"),
        Need("partitions of `events`", workers, "", "at least one a worker"),
        Need("workers' memory in all", workers * s.worker_bytes + f.devices * s.device_bytes
             + held_bytes(s, f), "bytes", "workers x base + devices x bytes a "
             "device + waiting messages x bytes"),
        Need("brokers' CPU", s.broker.rate(f) / f.busy, "cores", "(messages x CPU a message + rows "
             "x CPU a row + windows x CPU a window) / share; one copy"),
        Need("bytes on topics", s.topics.rate(f), "bytes a second", "messages x bytes a message + "
             "rows x bytes a row + windows x bytes a window; one copy"),
        Need("bytes on topics, a week", s.topics.rate(f) * 7 * DAY_S, "bytes", "the same x 7 days "
             "of retention; one copy"),
        Need("store", s.store.rate(f) * DAY_S, "bytes a day", "messages, rows and windows x "
             "bytes of each"),
        Need("commits", workers / s.flush_s, "a second", "workers / flush interval"),
        Need("stores (tables of their own)", math.ceil(workers / in_table), "", "workers / workers "
             "that one table takes"),
        Need("controller's CPU", controller, "cores", "devices / heartbeat x CPU a state + windows "
             "x CPU a report"),
        Need("controller's memory", s.controller_bytes + f.devices * s.controller_device_bytes,
             "bytes", "base + devices x bytes a device"),
        Need("controller's start", f.devices * s.start_device_s, "CPU s", "devices x CPU a device "
             "of a first read of `fleet`"),
    ]  # fmt: skip


def breaks(slopes: Slopes, fleet: Fleet) -> list[tuple[str, float, str]]:
    """What gives way, as the number of devices of this kind at which it does, the first one first:
    what, devices, and why."""
    s, f = slopes, fleet
    one = workers_of_one_table(s)
    each = {
        "one worker's CPU": (s.worker.rate(f) / f.devices / s.worker_cores, 1.0),
        "one worker's buffer": (held_bytes(s, f) / f.devices, s.buffer_bytes),
        "one table's commits, by CPU of its workers": (
            s.worker.rate(f) / f.devices / s.worker_cores,
            one,
        ),
        "one table's commits, by buffers of its workers": (
            held_bytes(s, f) / f.devices,
            one * s.buffer_bytes,
        ),
        "the controller's core": (
            s.state_s / f.heartbeat_s + f.windows_per_s / f.devices * s.report_s,
            1.0,
        ),
    }
    why = {
        "one worker's CPU": "it falls behind: lag",
        "one worker's buffer": "windows close early: revisions",
        "one table's commits, by CPU of its workers": "writers wait for each other's commits",
        "one table's commits, by buffers of its workers": "writers wait for each other's commits",
        "the controller's core": "it falls behind `fleet` and `windows`",
    }
    found = [
        (name, math.inf if cost <= 0 else bound / cost, why[name])
        for name, (cost, bound) in each.items()
    ]
    return sorted(found, key=lambda line: line[1])
