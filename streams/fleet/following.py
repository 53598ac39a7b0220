"""Starting from the last snapshot of a view, and going on with the topics.

The leading controller keeps a FleetView anyway. It publishes it on `view`:

1. the view's bytes (`view/1`: MessagePack compressed with zstd) are split into messages of at
   most PART bytes, with the keys "<slot>/<index>" and headers `schema`, `id` (of this snapshot),
   `index`, `count`. The slot is 0 or 1, the other one than that of the last complete snapshot:
   compaction never removes a part of that one in favour of a snapshot that was cut off
2. they are sent in order, each after the acknowledgement of the one before

A reader looks for the last message whose `count` messages with its `id` are complete, so a crash
between two messages leaves the snapshot before it. Then it reads the topics from the offsets that
the snapshot has. Without a snapshot it reads them from their beginning, of `windows` at most MOST
messages; what is passed over is counted in `FleetView.unseen`.

A snapshot of other topics (offsets past their ends) does not count.
"""

import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import msgspec

from streams.contract.errors import BrokerUnavailable, MalformedRecord, TopicMissing, UsageError
from streams.contract.events.messages import Headers
from streams.contract.topics import (
    DEAD_LETTERS,
    FLEET,
    RELEASES,
    ROUNDS,
    VIEW,
    WINDOWS,
    topic_name,
)
from streams.contract.window_report import WindowReport
from streams.contract.zstd import ZstdError, compressed, decompressed
from streams.fleet.agreement import Last, SeenReports
from streams.fleet.refused import LETTERS
from streams.fleet.view import NO_AGENT, FleetView
from streams.kafka.producer import Producer
from streams.kafka.reader import Reader, Received
from streams.kafka.settings import BrokerSettings

VIEW_1 = "view/1"
LARGEST = 1 << 28
TOPICS = (FLEET, WINDOWS, RELEASES, ROUNDS)
ALL_TOPICS = (*TOPICS, DEAD_LETTERS)  # for a person; of the last the newest LETTERS
PART = 900_000
MOST = 50_000  # messages of `windows` that are read after a snapshot, or without one
TRIES = 3  # snapshots that are looked at, the last one first
EVERY_S = 15.0  # between two snapshots, where something has come
SHARE = 0.05  # of the time, at most, for writing them: that of a large fleet takes some
RETRY_S = 60.0

log = logging.getLogger(__name__)


@dataclass
class Saved:
    """time_us: when it was written, by the wall clock."""

    time_us: int
    view: FleetView


def encode(view: FleetView, time_us: int) -> bytes:
    """Return the view's bytes."""
    return compressed(msgspec.msgpack.encode(Saved(time_us, view), enc_hook=SeenReports.dump))


def decode(data: bytes) -> tuple[FleetView, int]:
    """Return the view and when it was written; raise MalformedRecord for other bytes."""
    try:
        packed = decompressed(data, LARGEST)
        saved = msgspec.msgpack.decode(packed, type=Saved, dec_hook=_made)
    except (ValueError, RecursionError, ZstdError) as exc:
        raise MalformedRecord("bad-view", str(exc)[:300]) from exc
    return saved.view, saved.time_us


def _made(kind: type, value: dict[Any, Any]) -> Any:
    """Return a value of a class that MessagePack does not know."""
    if kind is SeenReports:
        return SeenReports.load(msgspec.convert(value, dict[str, Last]))
    return Counter(value)


def publish(producer: Producer, view: FleetView, time_us: int) -> int:
    """Publish a snapshot; return its size in bytes."""
    data, name, topic = encode(view, time_us), uuid.uuid4().hex, topic_name(view.task, VIEW)
    parts, slot = [data[at : at + PART] for at in range(0, len(data), PART)], 1 - view.slot
    for index, part in enumerate(parts):
        headers: Headers = [
            ("schema", VIEW_1.encode()),
            ("id", name.encode()),
            ("index", str(index).encode()),
            ("count", str(len(parts)).encode()),
        ]
        producer.put(topic, f"{slot}/{index}".encode(), part, headers)
    view.slot = slot
    return len(data)


class Snapshots:
    """Publishes a view that changes, of the leading controller. `clock` in seconds."""

    def __init__(self, view: FleetView, clock: Callable[[], float] = time.monotonic) -> None:
        self._view, self._clock, self._due = view, clock, 0.0
        self._published = dict(view.offsets)

    def publish_if_due(self, producer: Producer) -> None:
        """Publish a snapshot. Nothing waits for it: where it cannot be sent, readers start from
        the one before."""
        began, view = self._clock(), self._view
        if began < self._due or view.offsets == self._published:
            return
        try:
            publish(producer, view, time.time_ns() // 1000)
        except (BrokerUnavailable, UsageError) as exc:
            log.warning("no snapshot of the fleet: %s; trying again in %.0f s", exc, RETRY_S)
            self._due = began + RETRY_S
            return
        self._published = dict(view.offsets)
        self._due = began + max(EVERY_S, (self._clock() - began) / SHARE)


def last_snapshot(settings: BrokerSettings, task: str, timeout_s: float) -> FleetView | None:
    """Return the view of the last complete snapshot; None without one."""
    try:
        reader = Reader(settings, [topic_name(task, VIEW)], timeout_s=timeout_s)
    except TopicMissing:
        return None
    with closing(reader):
        messages: list[Received] = []
        for before in reader.read_back(step=TRIES * 4):
            messages = [*sorted(before, key=lambda m: m.offset), *messages]
            if view := newest_of(messages, task):
                return view
    return None


def newest_of(messages: Sequence[Received], task: str) -> FleetView | None:
    """Return the view of the last complete snapshot among messages of `view`, in their order."""
    parts: dict[bytes, dict[int, bytes]] = {}
    counts: dict[bytes, int] = {}
    slots: dict[bytes, int] = {}
    for message in messages:
        found = dict(message.headers)
        try:
            name, index, count = found["id"], int(found["index"]), int(found["count"])
        except (KeyError, ValueError, TypeError):
            continue
        parts.setdefault(name, {})[index] = message.value or b""
        counts[name], slots[name] = count, int((message.key or b"").startswith(b"1/"))
    for name in reversed(parts):
        if len(parts[name]) < counts[name]:
            continue
        whole = [parts[name].get(index) for index in range(counts[name])]
        if None in whole:
            continue
        try:
            view, _ = decode(b"".join(part for part in whole if part is not None))
        except MalformedRecord as exc:
            log.warning("a snapshot on %s is passed over: %s", topic_name(task, VIEW), exc)
            continue
        if view.task == task:
            view.slot = slots[name]
            return view
    return None


def open_view(
    settings: BrokerSettings,
    task: str,
    topics: Sequence[str] = TOPICS,
    timeout_s: float = 10.0,
) -> tuple[FleetView, Reader]:
    """Return the last snapshot, or an empty view, and a reader of what came after it."""
    view = last_snapshot(settings, task, timeout_s) or FleetView(task)
    reader = Reader(settings, [topic_name(task, name) for name in topics], timeout_s=timeout_s)
    try:
        bounds = {
            (topic.removeprefix(f"{task}."), partition): both
            for (topic, partition), both in reader.bounds().items()
        }
        if any(view.offsets.get(place, 0) > end for place, (_, end) in bounds.items()):
            log.warning("the snapshot of %s is of other topics: reading them whole", task)
            view = FleetView(task)
        for (name, partition), start in starts(view, bounds).items():
            reader.seek(topic_name(task, name), partition, start)
    except BaseException:
        reader.close()
        raise
    return view, reader


def starts(
    view: FleetView, bounds: Mapping[tuple[str, int], tuple[int, int]]
) -> dict[tuple[str, int], int]:
    """Return where to read on; count what was deleted since, and what would be too many."""
    found = {}
    windows = sum(name == WINDOWS for name, _ in bounds)
    for place, (begin, end) in bounds.items():
        known = view.offsets.get(place, begin)
        start = max(known, begin)
        if place[0] == WINDOWS:
            start = max(start, end - MOST // windows)
            view.unseen["deleted"] += max(begin - known, 0)
            view.unseen["many"] += start - max(known, begin)
        if place[0] == DEAD_LETTERS:
            start = max(start, end - LETTERS)
        found[place] = start
    return found


def before(
    settings: BrokerSettings, task: str, offsets: Mapping[tuple[str, int], int], most: int
) -> Iterator[tuple[WindowReport, Received]]:
    """Yield the newest `most` reports on `windows` before these offsets, by partition in order,
    each once; raise BrokerUnavailable. One that cannot be read is left out: the view counts it."""
    if not offsets:  # of a new view
        return
    topic, reports = topic_name(task, WINDOWS), SeenReports()
    with closing(Reader(settings, [topic], from_beginning=False)) as reader:
        ends: dict[int, int] = {}
        bounds = reader.bounds()
        for (_, partition), (begin, _) in bounds.items():
            end = ends[partition] = offsets.get((WINDOWS, partition), begin)
            reader.seek(topic, partition, max(begin, end - most // len(bounds)))
        if not reader.before({(topic, partition): end for partition, end in ends.items()}):
            return
        for message in reader.to_end():
            if message.offset >= ends[message.partition]:
                continue
            try:
                report = WindowReport.decode(message.value)
            except MalformedRecord:
                continue
            if reports.is_new(report):
                yield report, message


def read_view(
    settings: BrokerSettings,
    task: str,
    timeout_s: float = 10.0,
    topics: Sequence[str] = TOPICS,
) -> FleetView:
    """Return the view up to the topics' current end; raise BrokerUnavailable."""
    view, reader = open_view(settings, task, topics, timeout_s)
    with closing(reader):
        for message in reader.to_end():
            view.absorb(message)
    return view


def forget_device(settings: BrokerSettings, task: str, device: str) -> str:
    """Have all readers leave a device out; return a line for the user. Raise UsageError for one
    that is not known, or that would be back at once."""
    view, now_s = read_view(settings, task), time.time()
    state = view.everyone.get(device)
    if state is None:
        raise UsageError(f"{task} has no device {device}: `tidewheel status` lists them")
    if not (view.is_silent(state, now_s) or state.phase in ("stopped", NO_AGENT)):
        ago_s = now_s - state.time_us / 1e6
        raise UsageError(f"{device} was heard {ago_s:.0f} s ago: stop it first")
    with closing(Producer(settings)) as producer:
        producer.put(topic_name(task, FLEET), device.encode(), None)
    return f"{device} has left the fleet of {task}; its windows stay"
