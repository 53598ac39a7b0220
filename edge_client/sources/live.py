"""A sensor: readings are cut as they come, and neither paced, moved in time nor repeated."""

import threading
from collections.abc import Callable, Iterable, Iterator

from edge_client.sources.cuts import Cut, Skip
from streams.contract.task import Reading, Readings, Task
from streams.segments.segmentation import segments_of


class Live:
    """An iterable of Cuts that ends with its readings, or when `stop` is set."""

    passes_done = 0
    share_of_pass = 0.0

    def __init__(
        self,
        task: Task,
        readings: Callable[[], Iterable[Reading | Readings]],
        stop: threading.Event,
        skip: Skip,
    ) -> None:
        self._task, self._readings, self._stop, self._skip = task, readings, stop, skip

    def __iter__(self) -> Iterator[Cut]:
        cuts = segments_of(self._readings(), self._task, skip=self._skip)
        position = -1
        for first, last, segment, truth in cuts:
            position = max(position + 1, first)
            yield Cut(first, last, position, last, segment, truth)
            if self._stop.is_set():
                return
