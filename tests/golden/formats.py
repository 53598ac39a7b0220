"""Each durable format: how a small sample is written, and what is read of it.

`write` fills a folder by the product's own code; `read` opens a copy as the product does after an
update, and returns what it finds as JSON. Contents are fixed, so that what is read is the same at
every writing, however the bytes differ (times, random names).
"""

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from edge_client.inference.slots import Slots
from edge_client.samples.accuracy import AccuracyTracker
from edge_client.samples.samples import Samples
from edge_client.samples.splits import HELD_OUT, TRAIN
from edge_client.spool.frames import EVENTS
from edge_client.spool.queue import Spool
from federation.registry.audit import verify
from federation.registry.registry import Registry
from federation.rounds import checkpoint
from streams.contract.decisions import Release
from streams.contract.documents import DeviceState, RoundEvent
from streams.contract.events.labels import LabelBatch
from streams.contract.events.messages import Drop, encode_drop, encode_label_lines, encode_labels
from streams.contract.events.records import (
    EventBatch,
    decode_event_message,
    encode_events,
    encode_stream,
)
from streams.contract.signing import key_id
from streams.contract.window_report import ModelWindow, WindowReport
from streams.runtime.acceptance import Acceptance
from streams.worker.scoring.rows import ScoredWindow, score_rows
from streams.worker.store.delta_store import DeltaStore
from streams.worker.store.query import server_account
from streams.worker.store.tables import DROPS, SCORES, drop_rows
from streams.worker.windows.partition import DeclaredDrop
from streams.worker.windows.tumbling import Message, Window, split
from tests.edge_client.models import artifact, plain, segments, tiny
from tests.federation.registries import OLD, model, offer, registry_in, serve
from tests.federation.rounds.test_checkpoint import sample
from tests.streams.worker.support import batch

Facts = dict[str, Any]


@dataclass(frozen=True)
class Format:
    write: Callable[[Path], None]
    read: Callable[[Path], Facts]


def digest(data: bytes | np.ndarray) -> str:
    """Of bytes, or of an array's type, shape and values."""
    if isinstance(data, np.ndarray):
        data = f"{data.dtype.str} {data.shape} ".encode() + np.ascontiguousarray(data).tobytes()
    return hashlib.sha256(data).hexdigest()[:16]


# --- spool ------------------------------------------------------------------------------------


def write_spool(folder: Path) -> None:
    """Three frames, of which one is settled, and declared drops."""
    spool = Spool(folder)
    for i in range(3):
        spool.append(i + 1, f"payload {i}".encode(), mark=100 + i)
    spool.declare_lost(4, "disk-full")
    spool.settle(spool.read(spool.position, 1))
    spool.sync_position()


def read_spool(folder: Path) -> Facts:
    spool = Spool(folder)
    account, frames = spool.audit(), spool.read(spool.position, 1 << 20)
    return {
        "produced": account.produced,
        "delivered": account.delivered,
        "dropped": account.dropped,
        "pending": account.pending,
        "frames": [
            [f.first, f.count, f.mark, f.payload.decode()] for f in frames if f.kind == EVENTS
        ],
        "next": spool.next_seq,
    }


# --- a device's slots and samples -----------------------------------------------------------------


def write_device(folder: Path) -> None:
    """Two installed versions, an accepted decision, remembered samples and counted answers."""
    slots = Slots(folder / "slots", tiny, [OLD.public_key()])
    for number in (1, 2):
        slots.install(artifact(OLD, plain(number), number))
    slots.close()
    registry = registry_in(folder / "made")
    release = serve(registry, model(registry, 1))
    Acceptance(folder / "slots" / "accepted.json", tiny, [OLD.public_key()]).accept(release)
    for path in sorted((folder / "made").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (folder / "made").rmdir()
    samples = Samples(tiny, folder / "samples.rows")
    for i, segment in enumerate(segments(6)):
        label = np.array([i % 3], np.float32) if i % 2 else None
        answer = np.eye(3, dtype=np.float32)[i % 3]
        samples.add(i, 1000 * i, segment, answer, HELD_OUT if i == 3 else TRAIN, label)
    samples.save()
    board = AccuracyTracker(folder / "scoreboard.json")
    for i in range(4):
        board.count("1-aaaaaaaa", i, bool(i % 2), held_out=i > 1)
    board.save()


def read_device(folder: Path) -> Facts:
    slots = Slots(folder / "slots", tiny, [OLD.public_key()])
    engine = slots.open()
    assert engine is not None
    answer = engine.run(segments(1)[0])
    slots.close()
    accepted = Acceptance(folder / "slots" / "accepted.json", tiny, [OLD.public_key()])
    samples = Samples(tiny, folder / "samples.rows")
    held, labels = samples.held_out(10)
    board = AccuracyTracker(folder / "scoreboard.json").scores()
    return {
        "active": slots.active,
        "previous": slots.previous,
        "answer": [round(float(x), 4) for x in answer],
        "accepted": [accepted.seq, sorted(key_id(key) for key in accepted.trusted)],
        "samples": [*samples.counts()],
        "held_out": [digest(held), labels.tolist()],
        "scores": {name: score.model_dump() for name, score in board.items()},
    }


# --- registry, releases -------------------------------------------------------------------------


def write_registry(folder: Path) -> None:
    """Two versions, one served and one offered, and the delta between them."""
    registry = registry_in(folder)
    first, second = model(registry, 1), model(registry, 2)
    serve(registry, first)
    offer(registry, second)
    registry.delta(second.model, first.model)
    registry.set_heldout(b"held out")


def read_registry(folder: Path) -> Facts:
    registry = Registry(folder, "tiny", 1, [OLD.public_key()])
    found = verify(registry, {key_id(OLD.public_key()): OLD.public_key()})
    return {
        "models": registry.models(),
        "problems": found.problems,
        "decisions": [[d.seq, d.kind, d.model, d.reason] for d in registry.decisions()],
        "standing": registry.desired().model_dump(),
        "releases": [r.verified(registry.keys, "tiny").seq for r in registry.history()],
        "again": Release.decode(registry.history()[-1].encode()).decision.seq,
        "weights": [digest(registry.read(name)) for name in registry.models()],
        "delta": len(registry.delta(*reversed(registry.models()))) > 0,
        "heldout": digest(registry.heldout() or b""),
    }


# --- a run's checkpoint ---------------------------------------------------------------------------


def write_checkpoint(folder: Path) -> None:
    checkpoint.save(folder, sample())


def read_checkpoint(folder: Path) -> Facts:
    found = checkpoint.latest(folder, "7")
    assert found is not None
    return {
        "about": json.loads(found.about.encode()),
        "weights": {name: digest(value) for name, value in sorted(found.weights.items())},
        "server": {name: digest(value) for name, value in sorted(found.server.items())},
    }


# --- the store ------------------------------------------------------------------------------------


def scored(first: int, times_s: list[float], commit: int) -> pa.Table:
    pieces = tuple(split(tiny, Message(0, None), batch("d0", first, times_s)))
    windows = [Window(0, "d0", piece.window, (piece,)) for piece in pieces]
    answers = [np.full((w.rows, tiny.outputs), 0.5, np.float32) for w in windows]
    pairs = zip(windows, answers, strict=True)
    return score_rows(tiny, "1-teacher", [ScoredWindow(w, a, 0, commit, "{}") for w, a in pairs])


def write_store(folder: Path) -> None:
    """Two commits of scores and one of drops, a snapshot between them."""
    store = DeltaStore(folder)
    store.commit(SCORES, scored(0, [1, 2, 3], 1), {0: 1})
    store.keep_up(0)
    store.commit(SCORES, scored(5, [11, 12], 2), {0: 2})
    declared = [(0, DeclaredDrop(None, Drop("d0", "e1", 3, 4, "disk-full")))]
    store.commit(DROPS, drop_rows(declared, {0: 1}, 10), {0: 1})


def read_store(folder: Path) -> Facts:
    store = DeltaStore(folder)
    position = store.position(0)
    rows = [store.rows_of(0, commit) for commit in (1, 2)]
    return {
        "account": [[*key, *counts] for key, counts in server_account(folder).items()],
        "commits": [position.commit, position.drops_commit],
        "taken": [[*key, [*sets]] for key, sets in position.taken.items()],
        "watermark": position.watermark,
        "rows": [
            [row["device"], row["seq"], row["model"], row["teacher_model"]]
            for table in rows
            for row in table.to_pylist()
        ],
        "columns": list(rows[0].schema.names),
    }


# --- messages ---------------------------------------------------------------------------------


def write_messages(folder: Path) -> None:
    """Events, a drop and labels as on `events`; a document of `fleet`, `windows` and `rounds`."""
    sent = batch("d0", 7, [1, 2, 3])
    told = {"from": 1, "to": 2, "label": [1.0], "told": 3, "source": "user"}
    messages = [
        encode_stream(sent),
        encode_drop(Drop("d0", "e1", 3, 4, "x")),
        encode_labels("d0", "l1", 5, encode_label_lines([told]), tiny.version),
    ]
    records, compact = (
        [
            {
                "key": base64.b64encode(key).decode(),
                "value": base64.b64encode(value).decode(),
                "headers": [[name, base64.b64encode(text).decode()] for name, text in headers],
            }
            for key, value, headers in each
        ]
        for each in (messages, [encode_events(sent, tiny.version)])
    )
    state = DeviceState(
        device="d0", task="tiny", time_us=5, epoch="e1", active="1-a", produced=9, delivered=5,
        dropped={"old": 1}, pending=3,
    )  # fmt: skip
    part = ModelWindow(events=3, agreeing=2, compared=3)
    report = WindowReport(
        task="tiny", device="d0", window_us=0, end_us=5_000_000, revision=1, events=3,
        teacher_model="1-t", models={"1-a": part},
    )  # fmt: skip
    event = RoundEvent(run="7", kind="promoted", time_us=5, model="2-b", metrics={"devices": 0.5})
    documents = {
        "fleet": state.encode().decode(),
        "windows": report.encode().decode(),
        "rounds": event.encode().decode(),
    }
    text = json.dumps({"events": records, "compact": compact, "documents": documents}, indent=1)
    (folder / "messages.json").write_text(text + "\n")


def read_messages(folder: Path) -> Facts:
    found = json.loads((folder / "messages.json").read_text())
    events, drop, labels, *compact = (
        decode_event_message(
            tiny,
            base64.b64decode(each["key"]),
            base64.b64decode(each["value"]),
            [(name, base64.b64decode(text)) for name, text in each["headers"]],
        )
        for each in [*found["events"], *found.get("compact", [])]
    )
    assert isinstance(events, EventBatch)
    assert isinstance(labels, LabelBatch)
    assert all(each == events for each in compact)
    kinds = {"fleet": DeviceState, "windows": WindowReport, "rounds": RoundEvent}
    return {
        "events": [events.device, events.epoch, events.first, events.last],
        "columns": {
            name: digest(json.dumps(events.rows.column(name).to_pylist(), default=str).encode())
            for name in events.rows.schema.names
        },
        "drop": repr(drop),
        "labels": [labels.first, json.dumps(labels.rows.to_pylist(), default=str)],
        "compact": len(compact),
        "documents": {
            name: kinds[name].decode(text.encode()).model_dump()
            for name, text in found["documents"].items()
        },
    }


FORMATS = {
    "spool": Format(write_spool, read_spool),
    "device": Format(write_device, read_device),
    "registry": Format(write_registry, read_registry),
    "checkpoint": Format(write_checkpoint, read_checkpoint),
    "store": Format(write_store, read_store),
    "messages": Format(write_messages, read_messages),
}
