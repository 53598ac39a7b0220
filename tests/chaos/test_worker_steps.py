"""Workers that are killed at numbered steps: windows of the kinds that tests/streams/worker leaves
out, and labels of stored events. In process tests/streams/worker/commit has each step."""

from collections import Counter
from pathlib import Path

import pytest

from streams.contract.window_report import WindowReport
from streams.fleet.agreement import SeenReports
from streams.kafka.settings import BrokerSettings
from tests.rig.asked import asked
from tests.rig.processes.workers import Fleet, batch, fleet, stop, until
from tests.streams.worker.kills import until_killed
from tests.streams.worker.test_known_labels import positions, send
from tests.streams.worker.test_worker import kill_at_each_step

pytestmark = pytest.mark.kafka


@pytest.mark.parametrize("window", ["Session(2, longest_s=9)", "Count(7)"])
def test_sessions_and_counts_lose_and_double_nothing(
    kafka: BrokerSettings, tmp_path: Path, window: str
) -> None:
    kill_at_each_step(kafka, tmp_path, window, "arrow", (2, 3, 5))


def counted(served: Fleet) -> dict[tuple[str, int], tuple[int, int]]:
    """Labels and right answers by window, as a reader of `windows` adds them up; by either way to
    recognize what comes twice."""
    by_name: dict[tuple[str, int, int], bytes] = {}
    total: Counter[tuple[str, int, str]] = Counter()
    seen = SeenReports()
    for message in served.read("windows"):
        report = WindowReport.decode(message.value)
        name, parts = (report.device, report.window_us, report.revision), report.models.values()
        new = name not in by_name
        assert by_name.setdefault(name, message.value or b"") == message.value
        assert seen.is_new(report) == new
        for field in ("events", "labelled", "correct") if new else ():
            total[*name[:2], field] += sum(getattr(part, field) for part in parts)
    for device, window, revision in by_name:
        assert revision == 0 or (device, window, revision - 1) in by_name
    names = {(device, window) for device, window, _ in by_name}
    return {name: (total[*name, "labelled"], total[*name, "correct"]) for name in names}


def stored(served: Fleet) -> dict[tuple[str, int], tuple[int, int]]:
    """The same of the events with their latest labels in the store."""
    right = "list_position(outputs, list_max(outputs)) - 1 = label[1]"
    sql = (
        'select device, epoch_us("window"), count(label), '
        f"coalesce(sum(({right})::int), 0) from labelled group by all"
    )
    return {(device, start): (n, int(ok)) for device, start, n, ok in asked(served.store, sql)}


def test_labels_of_stored_events_count_once_in_reports_whenever_the_worker_is_killed(
    kafka: BrokerSettings, tmp_path: Path
) -> None:
    """Of events before and after, twice, in place of another, and of none."""
    with fleet(kafka, tmp_path, idle_close_s=0.5) as served:
        sent = 0

        def more() -> None:
            nonlocal sent
            served.send(batch("d0", sent, [(sent + i) / 10 for i in range(5)]))
            known = [{"epoch": "e1", "seq": sent - 5 * back, "label": back} for back in (0, 1)]
            known += [{"epoch": "e1", "seq": sent + 7, "label": 2}, {**known[0], "label": 1}]
            known += [{"event_id": f"never-{sent}", "label": 0}] * 2
            send(served, "labels", [one for one in known if one.get("seq", 0) >= 0])
            sent += 5

        for step in ("late-step-1:1", "late-step-2:2", "worker-step-2:3", "late-step-1:2"):
            until_killed(served, served.start(failpoint=step), more)
        worker = served.start()
        for _ in range(5):
            more()
        served.wait_until_scored()
        until(lambda: all(p.committed == p.end for p in positions(served) if p.end), "committed")
        until(lambda: counted(served) == stored(served), "reports add up to the store")
        assert stop(worker) == 0
        assert counted(served) == stored(served)
        assert sum(labelled for labelled, _ in counted(served).values()) >= 15
        reports = [WindowReport.decode(message.value) for message in served.read("windows")]
        assert sum(not report.events for report in reports) >= 5
