"""What a device's clock and its absence do to its windows and its account."""

import asyncio

from streams.contract.window_report import WindowReport
from streams.kafka.admin import GroupPosition
from streams.worker.store.delta_store import SCORES
from tests.rig.made_up.tiny_task import task
from tests.rig.processes.workers import SECOND, batch
from tests.streams.worker.model import Log, MemoryStore, committer

DAY_S = 86_400.0
Steps = list[tuple[float, str, int, list[float]]]  # wall time, device, first seq, event times


async def live(log: Log, store: MemoryStore, steps: Steps) -> None:
    """One worker to which messages come at the given wall times; it flushes after each."""
    made = committer(task, log, store, now_us=round(40 * DAY_S * SECOND))
    await made.assign(GroupPosition(0, 0, 0, None))
    for offset, (now_s, device, first, times) in enumerate(steps):
        log.append(batch(device, first, times))
        made.receive(log.incoming(offset), offset, now_s)
        await made.flush(now_s)
    await made.flush(1e9)


def reports(log: Log, device: str) -> list[tuple[int, int, int, bool]]:
    """(window in seconds, revision, events, late) in the order of their publication."""
    found = [WindowReport.decode(m.value) for m in log.published if m.topic == "tiny.v1.windows"]
    return [
        (r.window_us // SECOND, r.revision, r.events, r.late) for r in found if r.device == device
    ]


def played(steps: Steps) -> tuple[Log, MemoryStore]:
    log, store = Log(), MemoryStore()
    asyncio.run(live(log, store, steps))
    sent = sorted((d, seq) for _, d, first, t in steps for seq in range(first, first + len(t)))
    rows = store.tables[SCORES].select(["device", "seq"]).to_pylist()
    assert sorted((r["device"], r["seq"]) for r in rows) == sorted(set(sent))
    assert log.committed == len(steps)
    return log, store


def test_a_device_that_was_away_for_a_day_is_scored_as_if_it_had_never_left() -> None:
    """Its spool comes when the others are a day ahead and its window is long closed."""
    others: Steps = [(10.0 * i, "d1", i, [DAY_S * i / 10]) for i in range(10)]
    back: Steps = [
        (0.0, "d0", 0, [0.0, 1.0, 2.0]),
        *others,
        (DAY_S, "d0", 3, [6.0, 7.0, 8.0, 9.0]),
        (DAY_S + 0.1, "d0", 7, [11.0, 12.0, 20.0]),
    ]
    never_left: Steps = [
        (0.0, "d0", 0, [0.0, 1.0, 2.0]),
        (0.1, "d0", 3, [6.0, 7.0, 8.0, 9.0]),
        (0.2, "d0", 7, [11.0, 12.0, 20.0]),
    ]
    found = reports(played(back)[0], "d0")
    assert found == [(0, 0, 3, False), (5, 0, 4, False), (10, 0, 2, False), (20, 0, 1, False)]
    assert found == reports(played(never_left)[0], "d0")


def test_a_clock_that_jumps_ahead_and_back_makes_rows_late_and_loses_none() -> None:
    steps: Steps = [
        (0.0, "d0", 0, [0.0, 1.0]),
        (0.1, "d0", 2, [500.0]),  # ahead: closes the first window
        (0.2, "d0", 3, [2.0, 3.0]),  # back: late, the same window's revision
        (0.3, "d0", 5, [7.0]),  # late, a window of its own
        (0.4, "d0", 6, [501.0]),
    ]
    assert reports(played(steps)[0], "d0") == [
        (0, 0, 2, False),
        (0, 1, 2, True),
        (5, 0, 1, False),
        (500, 0, 2, False),
    ]
