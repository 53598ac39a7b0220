"""What a worker keeps of a device is bounded: no timing, the allocator's count."""

from streams.tasks import har
from tests.bench.streams.state import bytes_per_device


def test_a_device_takes_at_most_four_kilobytes_beyond_its_open_rows() -> None:
    state, drift = bytes_per_device(har.task)
    assert state > 100
    assert drift > 12 * 100  # the counts of its last windows are in it
    assert state + drift <= 4096
