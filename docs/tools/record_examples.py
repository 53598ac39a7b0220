"""Write the examples of docs/reference/topics-and-records.md.

    python docs/tools/record_examples.py

Each example is made by the code that writes the record. In the page it stands between
`<!-- example NAME -->` and `<!-- end -->`.
"""

import json
import re
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

sys.path.insert(0, str(Path(__file__).parents[2]))

from edge_client.spool.frames import EVENTS, head_of
from federation.registry.publisher import chunks
from streams.contract.artifact import Manifest, pack
from streams.contract.artifact import head_of as artifact_head
from streams.contract.decisions import Decision, Delivery, DesiredState, Ref, Release, sign
from streams.contract.documents import DeviceState, RoundEvent
from streams.contract.errors import MalformedRecord
from streams.contract.events.batches import batch_of, columns_of
from streams.contract.events.json_form import decode_json
from streams.contract.events.json_items import decode_known_labels, placed_epoch
from streams.contract.events.messages import (
    TAUGHT,
    Drop,
    encode_drop,
    encode_label_lines,
    encode_labels,
    event_columns,
    task_layout,
)
from streams.contract.events.records import EventBatch, decode_scores, encode_events, encode_stream
from streams.contract.invitations import Invitation, sign_invitation
from streams.contract.task import Segment, Task
from streams.contract.work import Work, WorkReply, WorkRequest
from streams.worker.commit.messages import Incoming, Outgoing, dead_letters_of, decode, publications
from streams.worker.windows.rows import ScoredWindow, score_rows
from streams.worker.windows.tumbling import Message, Window, split

PAGE = Path(__file__).parents[1] / "reference" / "topics-and-records.md"
EXAMPLE = re.compile(r"<!-- example ([a-z-]+) -->\n.*?<!-- end -->", re.DOTALL)
TIME_US = 1_767_225_600_000_000  # 2026-01-01 00:00:00 UTC
EPOCH = "1767225590000-0a1b2c"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))

TASK = Task(
    name="pumps",
    version=1,
    channels=("x",),
    rate_hz=2,
    segment=Segment(samples=2, hop=2),
    classes=("idle", "running"),
    build_model=lambda: None,  # type: ignore[arg-type, return-value]
    readings=lambda _: [],
    devices=lambda: [],
)


def batch() -> EventBatch:
    """Return two events of pump-3: one with a label, both in one window."""
    columns = event_columns(
        TASK,
        first=7,
        times=np.array([TIME_US + 1_000_000, TIME_US + 2_000_000]),
        model="3-1f2e3d4c",
        outputs=np.array([[2.0, -1.0], [0.25, 0.5]], np.float32),
        labels=[np.array([0.0], np.float32), None],
        segments=np.array([[[0.5, 0.25]], [[1.0, -1.0]]], np.float32),
    )
    return EventBatch("pump-3", EPOCH, 7, batch_of(task_layout(TASK), columns))


def published() -> list[Outgoing]:
    """Return what a worker publishes for the window of these two events."""
    sent = batch()
    events = columns_of(sent.device, sent.epoch, sent.first, sent.rows)
    pieces = tuple(split(TASK, Message(41, None), events))
    window = Window(2, "pump-3", TIME_US, pieces)
    teacher = np.array([[3.0, -2.0], [1.0, -1.0]], np.float32)
    scored = ScoredWindow(window, teacher, revision=0, commit=12)
    return publications(TASK, score_rows(TASK, "1-9c8b7a6d", [scored]), store="5d1c90ab")


def hexdump(data: bytes, most: int = 96) -> str:
    """Return the first bytes as lines of 16: offset, hex, printable characters."""
    lines = []
    for at in range(0, min(len(data), most), 16):
        part = data[at : at + 16]
        shown = "".join(chr(b) if 32 <= b < 127 else "." for b in part)
        lines.append(f"{at:04x}  {part.hex(' '):<47}  {shown}")
    return "\n".join(lines if len(data) <= most else [*lines, "..."])


def message(key: bytes | None, headers: list[tuple[str, bytes]]) -> str:
    """Return the key, and the headers in lines of at most 100 characters."""
    text = "; ".join(f"{n}={t.hex() if n == TAUGHT else t.decode()}" for n, t in headers)
    lines = textwrap.wrap(text, 91, break_long_words=False, break_on_hyphens=False)
    shown = key.decode() if key else "none"
    return "\n".join([f"key      {shown}", "headers  " + "\n         ".join(lines)])


def rows(records: pa.RecordBatch) -> str:
    """Return the rows of a batch as JSON."""
    return "\n".join(wrapped(row) for row in records.to_pylist())


def wrapped(value: object) -> str:
    """Return JSON in lines of at most 100 characters, or of one value."""
    text = json.dumps(value, default=str).replace('": ', '":\0')
    text = textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)
    return text.replace("\0", " ")


def document(value: bytes) -> str:
    return wrapped(json.loads(value))


def block(text: str, language: str = "text") -> str:
    return f"```{language}\n{text}\n```\n"


def events_compact() -> str:
    key, value, headers = encode_events(batch())
    text = f"{message(key, headers)}\nvalue    {len(value)} bytes:\n\n"
    return block(text + hexdump(value)) + "\nDecoded:\n\n" + block(rows(batch().rows), "json")


def events() -> str:
    key, value, headers = encode_stream(batch())
    return block(f"{message(key, headers)}\nvalue    {len(value)} bytes, an Arrow IPC stream")


def drops() -> str:
    key, value, headers = encode_drop(Drop("pump-3", EPOCH, 9, 40, "spool-full"))
    return block(f"{message(key, headers)}\nvalue    {len(value)} bytes")


def labels() -> str:
    line: dict[str, object] = {
        "from": TIME_US, "to": TIME_US + 2_000_000, "label": [1.0],
        "told": TIME_US + 3_600_000_000, "source": "outcome",
    }  # fmt: skip
    key, value, headers = encode_labels("pump-3", EPOCH, 0, encode_label_lines([line]))
    return block(f"{message(key, headers)}\nvalue    {value.decode().rstrip()}")


def scores() -> str:
    (found,) = [m for m in published() if m.topic == "pumps.v1.scores"]
    text = f"partition {found.partition}\n{message(found.key, found.headers)}\n"
    text += f"value    {len(found.value)} bytes, an Arrow IPC stream; its first row:"
    decoded = rows(decode_scores(found.value, found.headers).slice(0, 1))
    return block(text) + "\nDecoded:\n\n" + block(decoded, "json")


def windows() -> str:
    (found,) = [m for m in published() if m.topic == "pumps.v1.windows"]
    head = f"partition {found.partition}\n{message(found.key, found.headers)}"
    return block(head) + "\n" + block(document(found.value), "json")


def decision() -> Release:
    """Return the decision that offers version 4 to a quarter of the fleet."""
    standing = DesiredState(
        stable=Ref(model="3-1f2e3d4c", digest="1f2e3d4c" + "0" * 56, size=61_440),
        offered=Ref(model="4-0a1b2c3d", digest="0a1b2c3d" + "0" * 56, size=61_440),
        share=0.25,
        stage=2,
    )
    found = Decision(
        task="pumps",
        task_version=1,
        seq=9,
        prev="ab" * 32,
        kind="stage",
        model="4-0a1b2c3d",
        reason="offered to 2 devices, 25.0% of all",
        evidence={"windows": 12.0},
        time_us=TIME_US,
        key="0" * 16,
        standing=standing,
    )
    return sign(found, KEY)


def releases() -> str:
    delivery = Delivery(
        model="4-0a1b2c3d", base="3-1f2e3d4c", sha256="cd" * 32, size=30_211, chunks=1, offset=17
    )
    value = decision().replace(deliveries=[delivery]).encode()
    shown = json.loads(value) | {"text": "..."}
    text = block(document(decision().text.encode()), "json")
    return block(wrapped(shown), "json") + "\nThe field `text`, decoded:\n\n" + text


def artifacts() -> str:
    value, headers = next(chunks(bytes(3)))
    key = b"<SHA-256 of all bytes, 64 hex digits>"
    return block(f"{message(key, headers)}\nvalue    {len(value)} bytes: a part of 128 KiB at most")


def fleet() -> str:
    state = DeviceState(
        device="pump-3", task="pumps", time_us=TIME_US, epoch=EPOCH, active="3-1f2e3d4c",
        previous="1-9c8b7a6d", produced=41, delivered=7, dropped={"spool-full": 32}, pending=2,
        release=9, events_per_s=1.0, latency_p50_us=52.0, latency_p99_us=110.0,
    )  # fmt: skip
    return block(document(state.encode()), "json")


def rounds() -> str:
    event = RoundEvent(
        run="7293", kind="refused", time_us=TIME_US, round=1, rounds=3, device="pump-5",
        reason="norm: 41.2 from the base, 8.1 are allowed", base="3-1f2e3d4c",
    )  # fmt: skip
    return block(document(event.encode()), "json")


def invitations() -> str:
    signed = sign_invitation(
        Invitation(
            task="pumps", task_version=1, run="7293", superlink="superlink:9093",
            devices=["pump-3", "pump-5"], issued_us=TIME_US, lease_s=300.0,
        ),
        KEY,
    )  # fmt: skip
    return block(document(signed.text.encode()), "json")


def dead_letter() -> str:
    key, value, headers = encode_stream(batch())
    incoming = Incoming(2, 41, b"pump-4", value, headers)
    try:
        decode(TASK, incoming, "")
    except MalformedRecord as exc:
        (letter,) = dead_letters_of(TASK, incoming, exc)
        text = message(letter.key, letter.headers)
        return block(f"{text}\nvalue    {len(letter.value)} bytes, as they came")
    raise AssertionError(f"a message with the key of another device than {key!r} is poison")


def work() -> str:
    about = Work(
        run="7293", round=1, task="pumps", task_version=1, base="3-1f2e3d4c", epochs=3,
        batch_size=32, learning_rate=0.02, seed=11, time_budget_s=48.0,
    )  # fmt: skip
    request = WorkRequest.of_fields({**about.fields(), "op": "train", "node": 12})
    metrics = {"evaluated": 40.0, "correct": 33.0, "loss": 0.41, "steps": 60.0}
    reply = WorkReply(device="pump-3", samples=640, base="3-1f2e3d4c", metrics=metrics)
    text = block(document(request.encode()), "json") + "\nReply:\n\n"
    return text + block(document(reply.encode()), "json")


def frame() -> str:
    return block(hexdump(head_of(EVENTS, 7, 2, TIME_US, b"payload")))


def artifact() -> str:
    manifest = Manifest(
        task="pumps", task_version=1, number=4, base="3-1f2e3d4c", run="7293", round=3,
        created_us=TIME_US, key="", files=[],
    )  # fmt: skip
    data = pack(manifest, {"weights.safetensors": b"weights"}, KEY)
    return block(hexdump(artifact_head(data), 48))


def events_json() -> str:
    """Return an event as JSON, and what it is counted by."""
    event = {
        "time": "2026-01-01T00:00:01Z", "segment": {"x": [0.5, 0.25]}, "answer": "idle",
        "label": "idle", "event_id": "order-7",
    }  # fmt: skip
    value = json.dumps(event)
    place = placed_epoch("0a1b2c3d-4e5f", 2), 41
    (found,) = decode_json(TASK, b"pump-3", value.encode(), *place)
    counted = f"counted as (pump-3, {found.epoch}, {found.first})"
    lines = textwrap.wrap(value, 100, break_on_hyphens=False)
    head = ["partition 2, offset 41", "key      pump-3", f"value    {lines[0]}"]
    rest = [f"         {line}" for line in lines[1:]]
    return block("\n".join([*head, *rest, counted]))


def known_labels() -> str:
    """Return labels from elsewhere."""
    value = '[{"event_id": "order-7", "label": "running", "known": "2026-01-04T09:30:00Z"}]'
    decode_known_labels(TASK, b"pump-3", value.encode())
    return block(f"key      pump-3\nvalue    {value}")


EXAMPLES = {
    "known-labels": known_labels,
    "events-json": events_json, "events-compact": events_compact, "events": events,
    "drops": drops, "labels": labels,
    "scores": scores, "windows": windows, "releases": releases,
    "artifacts": artifacts, "fleet": fleet, "rounds": rounds,
    "invitations": invitations, "dead-letter": dead_letter,
    "work": work, "frame": frame, "artifact": artifact,
}  # fmt: skip


def with_examples(page: str) -> str:
    """Return the page with every example made anew."""
    return EXAMPLE.sub(
        lambda found: f"<!-- example {found[1]} -->\n{EXAMPLES[found[1]]()}<!-- end -->", page
    )


if __name__ == "__main__":
    PAGE.write_text(with_examples(PAGE.read_text()))
