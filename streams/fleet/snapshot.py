"""A FleetView as bytes: `view/1`, JSON compressed with zstd. Pure."""

from collections import Counter

import zstandard
from pydantic import BaseModel, ConfigDict, ValidationError

from streams.contract.decisions import Decision
from streams.contract.documents import DeviceState, RoundEvent
from streams.contract.errors import MalformedRecord
from streams.contract.window_report import DriftReport
from streams.fleet.agreement import Agreement
from streams.fleet.recent_reports import RecentReports
from streams.fleet.timeline import Alarm, Day, Entry, Timeline
from streams.fleet.view import FleetView

VIEW_1 = "view/1"
SIZE = 8  # bytes before the compressed ones: the size of the others
LARGEST = 1 << 28


class SavedTimeline(BaseModel):
    known: list[Entry]
    days: list[tuple[str, str, Day]]
    latest: dict[str, tuple[int, int]]
    alarms: dict[str, Alarm]
    refusals: dict[str, dict[str, str]]


class SavedView(BaseModel):
    """The fields of a FleetView that JSON can hold; see there."""

    model_config = ConfigDict(ser_json_inf_nan="constants")

    task: str
    time_us: int
    devices: dict[str, DeviceState]
    producers: dict[str, DeviceState]
    heard_ms: dict[str, int]
    ended: list[DeviceState]  # last words of epochs that are no device's current one
    agreement: dict[str, Agreement]
    windows: int
    windows_late: int
    drift: dict[str, DriftReport]
    scored: dict[int, int]
    decisions: list[Decision]
    rounds: list[RoundEvent]
    earlier: dict[str, int]
    timeline: SavedTimeline
    reports: dict[str, list[int]]
    offsets: list[tuple[str, int, int]]
    unreadable: int
    unseen: int


SAME = (
    "task", "devices", "producers", "heard_ms", "agreement", "windows", "windows_late", "drift",
    "scored", "rounds", "earlier", "unreadable", "unseen",
)  # fmt: skip


def encode(view: FleetView, time_us: int) -> bytes:
    """Return the view's bytes; time_us: when, by the wall clock."""
    lines = view.timeline
    current = {(name, state.epoch) for name, state in view.devices.items()}
    saved = SavedView.model_construct(
        **{name: getattr(view, name) for name in SAME},
        time_us=time_us,
        ended=[state for name, state in view.epochs.items() if name not in current],
        decisions=list(view.decisions.values()),
        timeline=SavedTimeline.model_construct(
            known=list(lines.known.values()),
            days=[(day, release, each) for (day, release), each in lines.days.items()],
            latest=lines.latest,
            alarms=lines.alarms,
            refusals=lines.refusals,
        ),
        reports=view.reports.dump(),
        offsets=[(topic, partition, at) for (topic, partition), at in view.offsets.items()],
    )
    text = saved.model_dump_json().encode()
    packed = zstandard.compress(text)
    return b"".join([len(text).to_bytes(SIZE, "big"), packed])


def decode(data: bytes) -> tuple[FleetView, int]:
    """Return the view and when it was written; raise MalformedRecord for other bytes."""
    size = int.from_bytes(data[:SIZE], "big")
    if not len(data) > SIZE or not 0 < size <= LARGEST:
        raise MalformedRecord("bad-view", f"{len(data)} bytes are no view")
    try:
        if zstandard.frame_content_size(data[SIZE:]) != size:
            raise MalformedRecord("bad-view", f"a view of {size} bytes has another size")
        text = zstandard.decompress(data[SIZE:])
        saved = SavedView.model_validate_json(text)
    except (ValidationError, zstandard.ZstdError) as exc:
        raise MalformedRecord("bad-view", str(exc)[:300]) from exc
    view = FleetView(**{name: getattr(saved, name) for name in SAME})
    view.scored, view.earlier = Counter(saved.scored), Counter(saved.earlier)
    everything = [*saved.ended, *saved.devices.values()]
    view.epochs = {(state.device, state.epoch): state for state in everything}
    view.decisions = {decision.seq: decision for decision in saved.decisions}
    view.reports = RecentReports.load(saved.reports)
    view.offsets = {(topic, partition): at for topic, partition, at in saved.offsets}
    lines = saved.timeline
    view.timeline = Timeline(
        days={(day, release): each for day, release, each in lines.days},
        latest=lines.latest,
        alarms=lines.alarms,
        refusals=lines.refusals,
    )
    for entry in lines.known:
        view.timeline.add(entry)
    return view, saved.time_us
