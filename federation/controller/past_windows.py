"""The past with which a canary is compared, after a controller's start."""

from collections.abc import Iterator
from contextlib import closing

from streams.contract.errors import MalformedRecord
from streams.contract.topics import WINDOWS, topic_name
from streams.contract.window_report import WindowReport
from streams.kafka.reader import Reader
from streams.kafka.settings import BrokerSettings

LOOK_BACK_S = 7200.0
MOST = 10_000  # reports, over all partitions


def past_windows(
    broker: BrokerSettings, task: str, now_ms: int
) -> Iterator[tuple[WindowReport, int]]:
    """Yield the reports on `windows` of the last LOOK_BACK_S, the newest MOST, and when each was
    sent, microseconds. One that cannot be read is passed over: whoever follows the topic says so.
    """
    with closing(Reader(broker, [topic_name(task, WINDOWS)], from_beginning=False)) as reader:
        reader.seek_back(now_ms - int(LOOK_BACK_S * 1000))
        bounds = reader.bounds()
        for (name, partition), (_, end) in bounds.items():
            start = max(reader.position(name, partition), end - MOST // len(bounds))
            reader.seek(name, partition, start)
        for message in reader.to_end():
            try:
                yield WindowReport.decode(message.value), message.time_ms * 1000
            except MalformedRecord:
                continue
