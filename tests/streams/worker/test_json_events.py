"""Events as JSON, through the worker: the same rows as a device's, each once."""

import json
from dataclasses import replace

from streams.contract.accounting import IntervalSet
from streams.contract.events.json_items import MAX_ROWS
from streams.contract.events.records import AGAIN
from streams.contract.window_report import WindowReport
from streams.fleet.view import FleetView
from streams.kafka.reader import Received
from streams.worker.commit.hole_keeper import Hole, lost
from streams.worker.store.tables import DROPS, SCORES
from streams.worker.windows.partition import StorePosition
from streams.worker.windows.tumbling import FUTURE_S
from tests.rig.made_up.tiny_task import task as tiny
from tests.rig.processes.workers import batch, json_events
from tests.streams.worker.model import LATER, Log, MemoryStore, live

PLACED = "kafka-0-0"
SENT = batch("d0", 0, [1, 2, 3, 8])


def put(log: Log, events: object, key: bytes | None = b"d0") -> None:
    log.messages.append((key, json.dumps(events).encode(), []))


def seqs(store: MemoryStore) -> list[int]:
    return sorted(store.tables[SCORES].column("seq").to_pylist())


def test_an_event_has_the_same_row_whatever_its_form() -> None:
    stores = [MemoryStore(), MemoryStore()]
    for store, is_json in zip(stores, (False, True), strict=True):
        log = Log()
        if is_json:
            put(log, json_events(SENT, numbered=True))
        else:
            log.append(SENT)
        live(log, store, LATER)
    one, other = (store.tables[SCORES] for store in stores)
    assert one.num_rows == 4
    assert one.equals(other)


def test_names_of_events_are_stored() -> None:
    log, store = Log(), MemoryStore()
    first, second, *rest = json_events(SENT)
    put(log, [first | {"event_id": "order-7"}, second, *rest])
    live(log, store, LATER)
    names = store.tables[SCORES].sort_by("seq").column("event_id").to_pylist()
    assert names == ["order-7", None, None, None]


def test_repeats_are_recognized_by_the_producers_own_numbers_alone() -> None:
    log, store = Log(), MemoryStore()
    for _ in range(2):
        put(log, json_events(SENT, numbered=True))
        put(log, json_events(SENT)[0])
    live(log, store, LATER)
    assert seqs(store) == [0, 1, 2, 3, MAX_ROWS, 3 * MAX_ROWS]


def test_refused_events_are_scored_once_when_they_are_sent_again_over_restarts() -> None:
    log, store = Log(), MemoryStore()
    task = replace(tiny, source="live")
    put(log, json_events(batch("d0", 0, [1, FUTURE_S + 9])))
    live(log, store, LATER, of=task)
    (letter,) = [m for m in log.published if m.topic.endswith("dead-letters")]
    again = [(n[9:], v) for n, v in letter.headers if n.startswith("original-")]
    for _ in range(2):
        log.messages.append((letter.key, letter.value, [*again, (AGAIN, b"1")]))
        live(log, store, LATER, of=task, now_us=round(1e12))
    assert seqs(store) == [0, 1]
    assert [row["first"] for row in store.tables[DROPS].to_pylist()] == [1]
    assert log.committed == 3


def test_a_hole_is_not_made_of_numbers_that_are_places() -> None:
    position = StorePosition()
    position.taken["d0", PLACED] = IntervalSet([(7 * MAX_ROWS, 7 * MAX_ROWS)])
    assert lost(position, Hole(begin=0, end=5, until=8)) == []


def test_reports_of_a_device_from_several_partitions_are_added() -> None:
    view = FleetView("tiny.v1")
    log, store = Log(), MemoryStore()
    put(log, json_events(SENT))
    live(log, store, LATER)
    reports = [m for m in log.published if m.topic.endswith("windows")]
    for partition in (0, 1, 1):
        for at, m in enumerate(reports):
            report = WindowReport.decode(m.value).replace(partition=partition)
            view.absorb(Received(m.topic, partition, at, m.key, report.encode(), m.headers))
    events = sum(WindowReport.decode(m.value).events for m in reports)
    assert view.everyone["d0"].produced == 2 * events
