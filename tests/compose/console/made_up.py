"""A made-up fleet as messages of its topics, and a Watch that needs no broker."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

from compose.console.history import History
from compose.console.watch import Link, Moment, Watch
from compose.reports.follower import Lag, PartitionLag
from streams.contract.decisions import ZERO, Decision, DesiredState, Ref, sign
from streams.contract.window_report import WindowReport
from streams.fleet.agreement import Odds
from streams.fleet.view import FleetView
from streams.kafka.reader import Received
from tests.compose.messages import KEY, TASK, received, state, step, window

T = TypeVar("T")
NAME = "sensor-of-a-kind"
NOW_S = 1_800_000_000.0
STABLE, CANARY = "1-aaaaaaaa", "2-bbbbbbbb"
HTML = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
CHANNEL = {
    "channel": "x", "kind": "mean", "n": 30, "psi": 0.9, "hellinger": 0.1,
    "total_variation": 0.1, "threshold": 0.2, "alarm": True,
}  # fmt: skip
DRIFT: dict[str, Any] = {
    "windows": 3,
    "segments": 30,
    "decided": True,
    "alarm": True,
    "worst": "x",
    "share": 0.5,
}
DRIFT["channels"] = [CHANNEL]
DRIFT["histograms"] = [
    {"channel": "x", "kind": "mean", "edges": [-1.0, 0.0, 1.0], "counts": [0, 3, 12, 15, 0, 0],
     "reference": [10, 100, 80, 9, 1, 0]},
]  # fmt: skip


def at(message: Received, ago_s: float, now_s: float = NOW_S) -> Received:
    return replace(message, time_ms=round((now_s - ago_s) * 1000))


def device(name: str, ago_s: float = 1.0, now_s: float = NOW_S, **fields: Any) -> Received:
    score = {"labelled": 10, "correct": 8, "answers": 10}
    usual = {
        "time_us": round((now_s - ago_s) * 1e6),
        "events_per_s": 2.0,
        "accuracy": {STABLE: score},
    }
    return at(state(name, **{**usual, **fields}), ago_s, now_s)


def report(
    name: str, ago_s: float, model: str = STABLE, now_s: float = NOW_S, **fields: Any
) -> Received:
    """A window's report; `fields` change the report, not its counts."""
    start_s = round(now_s - ago_s) // 5 * 5
    made = WindowReport.decode(window(name, start_s, model=model).value)
    changed = WindowReport.of_fields({**made.fields(), **fields})
    return at(received("windows", name, changed), ago_s, now_s)


def decision(
    seq: int, kind: str, model: str, ago_s: float, now_s: float = NOW_S, **fields: Any
) -> Received:
    """`fields`: the standing's, and reason and evidence."""
    about = {name: fields.pop(name) for name in ("reason", "evidence") if name in fields}
    refs = {k: Ref(model=v, digest="a" * 64, size=61440) if isinstance(v, str) else v
            for k, v in fields.items()}  # fmt: skip
    made = Decision(
        task=TASK, task_version=1, seq=seq, prev=ZERO, kind=kind, model=model,
        time_us=round((now_s - ago_s) * 1e6), key="0" * 16,
        standing=DesiredState.of_fields(refs), **{"reason": "a test", **about},
    )  # fmt: skip
    return received("releases", f"{TASK}/{seq:08}", sign(made, KEY))


def letter(
    offset: int, reason: str = "bad-arrow", value: bytes = b"\x00\x01<b>", now_s: float = NOW_S
) -> Received:
    headers = [("reason", reason.encode()), ("detail", HTML.encode()), ("source-partition", b"0"),
               ("source-offset", b"7"), ("original-schema", b"events/1"),
               ("original-device", b"d0")]  # fmt: skip
    return Received(f"{TASK}.dead-letters", 0, offset, b"d0", value, headers, round(now_s * 1000))


def fleet(now_s: float = NOW_S, heard_s: float = 1) -> Iterator[Received]:
    """Six devices: one in error, one silent, one that drifts; a run, a canary, a dead letter."""
    yield decision(1, "served", STABLE, 900, now_s, stable=STABLE)
    for n in range(6):
        name = f"d{n}"
        yield device(
            name, 300 if n == 4 else heard_s, now_s, active=CANARY if n == 5 else STABLE,
            error=HTML if n == 3 else None, dropped={"spool-full": 5} if n == 2 else {},
        )  # fmt: skip
        for ago_s in range(600, 0, -20):
            model = CANARY if n == 5 and ago_s < 200 else STABLE
            yield report(name, ago_s, model, now_s, drift=DRIFT if n == 1 else None)
    usual = {"rounds": 2, "base": STABLE}
    yield step("requested", reason="agreement is low", time_us=round((now_s - 500) * 1e6), **usual)
    for number in (1, 2):
        common = {**usual, "round": number, "time_us": round((now_s - 500 + 10 * number) * 1e6)}
        yield step("started", metrics={"nodes": 3}, **common)
        yield step("admitted", device="d0", samples=10, **common)
        yield step("refused", device="d1", reason="norm: 9 is too large", **common)
        yield step("aggregated", samples=10, metrics={"seconds": 2.0}, **common)
        share = {"held_out": 0.7 + number / 20, "held_out_base": 0.66, "held_out_segments": 120}
        yield step("evaluated", **common, metrics=share)
    gate = {"devices": 0.8, "devices_base": 0.7, "devices_segments": 90, "held_out": 0.8,
            "held_out_base": 0.66, "held_out_segments": 120, "held_out/class slow": -0.02,
            "held_out/class slow/segments": 40, "held_out/class fast": 0.2,
            "held_out/class fast/segments": 40}  # fmt: skip
    when = {"time_us": round((now_s - 460) * 1e6)}
    yield step("promoted", model=CANARY, reason="promoted: accuracy on devices 0.70 → 0.80",
               metrics=gate, **usual, **when)  # fmt: skip
    yield step("finished", reason="promoted", **usual, **when)
    yield decision(2, "candidate", CANARY, 450, now_s, stable=STABLE, candidate=CANARY)
    yield decision(
        3, "stage", CANARY, 300, now_s, stable=STABLE, offered=CANARY, share=0.25, stage=1,
        evidence={"e_worse": 0.3, "e_fine": 4.0, "bound_worse": 50.0, "bound_fine": 20.0},
    )  # fmt: skip
    yield letter(0, now_s=now_s)


LAG = Lag([PartitionLag(0, 10, 7, 3)])


def absorbed(messages: Iterable[Received]) -> History:
    history = History(FleetView(TASK))
    for message in messages:
        history.absorb(message)
    return history


def observed(*messages: Received, link: Link | None = None, now_s: float = NOW_S) -> Moment:
    return Moment(absorbed(messages), LAG, link or Link("broker:9092", now_s), now_s)


def evaluate(history: History, ago_s: float, worse: float, fine: float) -> None:
    """As the controller does, which publishes it with its view."""
    offered = history.view.standing.offered
    assert offered is not None
    odds = Odds(round((NOW_S - ago_s) * 1e6), worse, fine)
    history.view.evidence.note(offered.model, "canary continues: 1 device, 9 windows", odds)


@dataclass
class FakeWatch:
    """A Watch of messages that were taken in before; now_s: the moment, None for now."""

    history: History
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    now_s: float | None = None
    ready: bool = True

    def look(self, make: Callable[[Moment], T]) -> T:
        now_s = time.time() if self.now_s is None else self.now_s
        return make(Moment(self.history, LAG, Link("broker:9092", now_s), now_s, self.names))

    @property
    def watch(self) -> Watch:
        return cast(Watch, self)


def many(count: int, now_s: float | None = None) -> Iterator[Received]:
    """A large fleet of now, with a window of each device; each message is that of a kind of device
    with another name, because making documents takes long."""
    now_s = time.time() if now_s is None else now_s
    ago_s = 30 if count < 100 else 60
    states = {
        (new, wrong): device(
            NAME, 1, now_s, active=CANARY if new else STABLE,
            error="the sensor does not answer" if wrong else None,
        )
        for new in (True, False) for wrong in (True, False)
    }  # fmt: skip
    reports = {d: report(NAME, ago_s, now_s=now_s, drift=DRIFT if d else None) for d in (0, 1)}
    for n in range(count):
        name = f"sensor-{n:05}"
        yield _named(states[n % 20 == 0, n % 997 == 0], name)
        yield _named(reports[n % 500 == 0], name)


def _named(message: Received, name: str) -> Received:
    value = (message.value or b"").replace(NAME.encode(), name.encode())
    return replace(message, key=name.encode(), value=value)
