"""What a device's readings look like, before anything is trained on them."""

import itertools
import queue
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from streams.contract.errors import TaskError, own_line
from streams.contract.task import Device, Reading, Task
from streams.contract.task.parts import one_by_one
from streams.segments.segmentation import LABEL_UNFIT, label_fits, segments_of

DATED_FROM_US = 10**15  # September 2001
READINGS = 1000
LIVE_S = 10.0  # a sensor is read for so long
AT_ONCE = 32  # sensors, most of which are waited for


@dataclass(frozen=True)
class Survey:
    """The first readings of one device.

    `skipped` counts what breaks a segment or is out of order, by reason; `labels` labelled readings
    by class (by target for regression); `unfit` labels that are none of the task's, as an example
    of one; `period_s` is the median time between two readings; `repeated` counts readings with the
    time of the one before; `error` is what the source raised, and where; `read_s` how long a sensor
    was read that gave fewer readings than were asked for.
    """

    device: str
    role: str
    readings: int = 0
    segments: int = 0
    labelled: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    unfit: str | None = None
    first_us: int | None = None
    last_us: int | None = None
    period_s: float | None = None
    repeated: int = 0
    error: str | None = None
    read_s: float | None = None

    @property
    def dated(self) -> bool:
        """Whether the times are dates, and not times since the start of a recording."""
        return self.first_us is not None and self.first_us >= DATED_FROM_US


class TaskReadings:
    """The readings of a device; `count` is how many were read.

    Iterated it raises TaskError for what the user's code raises, with the number of the reading and
    the line.
    """

    def __init__(self, task: Task, device: str) -> None:
        self._task, self._device = task, device
        self.count = 0

    def __iter__(self) -> Iterator[Reading]:
        try:
            for reading in one_by_one(self._task.readings(self._device)):
                found = Reading(*reading)
                self.count += 1
                yield found
        except Exception as exc:  # a user's code
            text = f"readings() fails: {type(exc).__name__}: {exc}"
            raise TaskError(f"{text} (reading {self.count + 1}{own_line(exc)})") from exc


class Sensor:
    """What a source yields within `within_s`; `waits` is whether it has not ended by then. It may
    wait for ever, so a thread reads it, and stops at the next reading."""

    def __init__(self, source: Iterable[Reading], within_s: float) -> None:
        self._source, self._within_s = source, within_s
        self._found: queue.SimpleQueue[Reading | TaskError | None] = queue.SimpleQueue()
        self._over = threading.Event()
        self.waits = False

    def __iter__(self) -> Iterator[Reading]:
        deadline = time.monotonic() + self._within_s
        threading.Thread(target=self._read, name="readings", daemon=True).start()
        try:
            while True:
                found = self._found.get(timeout=max(0.0, deadline - time.monotonic()))
                if found is None:
                    return
                if isinstance(found, TaskError):
                    raise found
                yield found
        except queue.Empty:
            self.waits = True
        finally:
            self._over.set()

    def _read(self) -> None:
        last = None
        try:
            for reading in self._source:
                if self._over.is_set():
                    return
                self._found.put(reading)
        except TaskError as exc:
            last = exc
        self._found.put(last)


def survey(task: Task, device: Device, limit: int = READINGS, within_s: float = LIVE_S) -> Survey:
    """Read at most `limit` readings of a device and cut them; never raises for what it finds. A
    live device is read for `within_s` at most."""
    seen: list[Reading] = []
    skipped: Counter[str] = Counter()
    error: str | None = None

    def skip(reason: str, _time_us: int) -> None:
        if reason != LABEL_UNFIT:  # `unfit` says more
            skipped[reason] += 1

    def readings() -> Iterator[Reading]:
        for reading in source:
            seen.append(reading)
            yield reading

    source: Iterable[Reading] = itertools.islice(TaskReadings(task, device.name), limit)
    sensor = None
    if task.source == "live" and device.role == "fleet":
        source = sensor = Sensor(source, within_s)
    cuts = []
    try:
        for *_, label in segments_of(readings(), task, skip=skip):
            cuts.append(label is not None)
    except TaskError as exc:
        error = str(exc)
    except (TypeError, ValueError) as exc:
        error = f"readings() fails: {type(exc).__name__}: {exc} (reading {len(seen)})"
    times = [reading.time_us for reading in seen if isinstance(reading.time_us, int)]
    odd = next((r.time_us for r in seen if not isinstance(r.time_us, int)), None)
    if odd is not None:
        error = error or f"readings() fails: time_us is {odd!r}: it must be an int, microseconds"
    steps = [b - a for a, b in itertools.pairwise(times) if b > a]
    given = [reading.label for reading in seen if reading.label is not None]
    unfit = next((label for label in given if not label_fits(task, label)), None)
    return Survey(
        device.name,
        device.role,
        readings=len(seen),
        segments=len(cuts),
        labelled=sum(cuts),
        skipped=dict(skipped),
        labels=_counts(task, given),
        unfit=None if unfit is None else repr(unfit)[:80],
        first_us=times[0] if times else None,
        last_us=times[-1] if times else None,
        period_s=statistics.median(steps) / 1e6 if steps else None,
        repeated=sum(b == a for a, b in itertools.pairwise(times)),
        error=error,
        read_s=within_s if sensor is not None and sensor.waits else None,
    )


def surveys(task: Task, devices: Sequence[Device], limit: int = READINGS) -> list[Survey]:
    """Survey devices, in this order; of a live task AT_ONCE at the same time."""
    if task.source != "live":
        return [survey(task, device, limit) for device in devices]
    found: list[Survey | BaseException | None] = [None] * len(devices)
    waiting = iter(range(len(devices)))

    def work() -> None:
        for number in waiting:
            try:
                found[number] = survey(task, devices[number], limit)
            except BaseException as exc:  # a defect: raised below
                found[number] = exc

    # Daemons, unlike those of a ThreadPoolExecutor: Ctrl-C does not wait for sensors.
    threads = [threading.Thread(target=work, daemon=True) for _ in devices[:AT_ONCE]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in found:
        if isinstance(each, BaseException):
            raise each
    return [each for each in found if isinstance(each, Survey)]


def _counts(task: Task, labels: Sequence[float | Sequence[float]]) -> dict[str, int]:
    fitting = [label for label in labels if label_fits(task, label)]
    if task.targets:
        return dict.fromkeys(task.targets, len(fitting)) if fitting else {}
    found: Counter[str] = Counter()
    for label in fitting:
        index = label[0] if isinstance(label, Sequence) else label
        found[task.classes[int(index)]] += 1
    return {name: found[name] for name in task.classes if found[name]}
