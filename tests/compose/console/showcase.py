"""A made-up fleet of forty pumps in a canary, for pictures: an hour of windows."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from compose.console.history import History
from streams.contract.decisions import rollout_position
from streams.contract.window_report import DriftReport, WindowReport
from streams.fleet.agreement import Odds
from streams.kafka.reader import Received
from tests.compose.console.made_up import absorbed, at, decision, device
from tests.compose.messages import TASK, received, step, window

OLD, NEW = "6-1f2e3d4c", "7-9c8b7a6d"
DEVICES, HOUR_S, EVERY_S = 40, 3600, 30
STAGES = ((12, "candidate", 1710, 0.0), (13, "stage", 1500, 0.05), (14, "stage", 690, 0.25))
CLASSES = ("idle", "running", "failing")
CHANNELS = (  # PSI where the device has not moved and where it has; cells of the reference, of it
    ("acc-x", "mean", 0.01, 1.432, (-1.49, -0.65, 0.2, 1.04, 1.88),
     (270, 1260, 2970, 2970, 1260, 270), (1, 9, 52, 185, 197, 156)),
    ("acc-x", "spread", 0.02, 0.594, (0.85, 1.23, 1.6, 1.98, 2.35),
     (270, 1340, 2970, 2880, 1270, 270), (1, 29, 91, 216, 178, 85)),
    ("acc-y", "mean", 0.01, 0.203, (-2.4, -1.4, -0.4, 0.6, 1.7),
     (270, 1340, 2960, 2960, 1200, 270), (5, 82, 132, 219, 142, 20)),
    ("predictions", "answer", 0.003, 0.126, (-0.5, 0.5, 1.5, 2.5),
     (0, 4500, 3600, 900, 0), (0, 268, 196, 136, 0)),
    ("gyro-z", "mean", 0.006, 0.006, (), (), ()), ("acc-z", "mean", 0.001, 0.001, (), (), ()),
)  # fmt: skip


@cache
def _drift(moved: bool) -> DriftReport:
    """The report of a device's last 12 windows."""
    usual = dict.fromkeys(("jensen_shannon", "hellinger", "total_variation"), 0.1)
    channels, histograms = [], []
    for channel, kind, still, far, edges, reference, counts in CHANNELS:
        psi = far if moved else still
        about = {"channel": channel, "kind": kind}
        channels.append({**about, **usual, "n": 600, "psi": psi, "threshold": 0.25,
                         "alarm": psi > 0.25})  # fmt: skip
        if edges:
            own = counts if moved else [round(n / 15) for n in reference]
            cells = {"reference": [*reference, 0, 0], "counts": [*own, 0, 0]}
            histograms.append({**about, **cells, "edges": edges, "ordered": kind != "answer"})
    return DriftReport.model_validate(
        {"windows": 12, "segments": 600, "decided": True, "alarm": moved, "worst": "acc-x",
         "share": 0.3 * moved, "channels": channels, "histograms": histograms}
    )  # fmt: skip


def messages(now_s: float) -> Iterator[Received]:
    random = np.random.default_rng(7)
    found = "canary passed: 10 devices, 61 windows, agreement with the teacher 0.91 (0.89 expected)"
    yield decision(11, "served", OLD, 7000, now_s, stable=OLD, reason=found)
    for n in range(DEVICES):
        yield _device(n, now_s, random)
    yield from _learning(now_s)
    for ago_s in range(HOUR_S, -120, -EVERY_S):  # some are of later, when the picture is taken
        yield from _decisions(ago_s, now_s)
        for n in range(DEVICES):
            yield _window(n, ago_s, now_s, random)


def _decisions(ago_s: int, now_s: float) -> Iterator[Received]:
    """The decision that is made at this time, if there is one."""
    told = {"candidate": "accuracy on devices 0.91 → 0.93, on held-out devices 0.86 → 0.89"}
    for seq, kind, at_s, share in STAGES:
        if at_s != ago_s:
            continue
        desired: dict[str, Any] = {"stable": OLD, "share": share, "stage": max(0, seq - 12)}
        desired["candidate" if kind == "candidate" else "offered"] = NEW
        count = sum(_position(n) < share for n in range(DEVICES))
        found = ": canary passed: 24 windows, agreement with the teacher 0.94 (0.92 expected)"
        reason = f"offered to {count} of {DEVICES} devices" + (found if seq == 14 else "")
        desired["reason"] = told.get(kind, reason)
        if seq == 14:
            bounds = {"bound_worse": 20.0, "bound_fine": 20.0}
            desired["evidence"] = {"e_worse": 0.04, "e_fine": 23.0, **bounds}
        yield decision(seq, kind, NEW, ago_s, now_s, **desired)


def _position(n: int) -> float:
    return rollout_position(TASK, f"pump-{n:02}")


def _serves(n: int, ago_s: float) -> str:
    share = next((s for _, _, at_s, s in reversed(STAGES) if ago_s <= at_s), 0.0)
    return NEW if _position(n) < share else OLD


def _device(n: int, now_s: float, random: np.random.Generator) -> Received:
    produced = 40_000 + int(random.integers(0, 9000))
    pending = int(random.integers(0, 12)) if n != 17 else 412
    score = {"labelled": 400, "answers": produced, "correct": int(random.integers(356, 380)),
             "held_out": 90, "held_out_correct": 80, "paired": 90, "paired_correct": 82,
             "paired_base_correct": 71}  # fmt: skip
    model = _serves(n, 0)
    return device(
        f"pump-{n:02}", 260 if n == 17 else -7200, now_s, active=model, produced=produced,
        previous=OLD if model == NEW else "5-77aa01cd", epoch="1767225590000-0a1b2c",
        pending=pending, delivered=produced - pending, latency_p50_us=38, latency_p99_us=121,
        events_per_s=round(float(random.normal(1.6, 0.05)), 2), samples=2000, true_labels=640,
        teacher_labels=1311, accuracy={model: score},
    )  # fmt: skip


def _window(n: int, ago_s: int, now_s: float, random: np.random.Generator) -> Received:
    model, events = _serves(n, ago_s), 46 + int(random.integers(0, 5))
    right = (0.945 if model == NEW else 0.915) - (0.12 if n in (5, 31) and ago_s < 1400 else 0)
    agreeing = int(random.binomial(events, right))
    made = WindowReport.decode(
        window(f"pump-{n:02}", round(now_s - ago_s) // 30 * 30, model=model, events=events,
               compared=events, agreeing=agreeing, labelled=20,
               correct=int(random.binomial(20, right))).value
    )  # fmt: skip
    report = made.model_copy(update={"drift": _drift(n in (5, 31) and ago_s < 1400)})
    return at(received("windows", report.device, report), ago_s, now_s)


def _learning(now_s: float) -> Iterator[Received]:
    for run, began_s, first, outcome in (
        ("41026", 12_000, 0.79, "rejected"), ("41027", 8000, 0.82, "promoted"),
        ("41028", 2400, 0.86, "promoted"),
    ):  # fmt: skip
        common: dict[str, Any] = {"run": run, "rounds": 3, "base": OLD}

        def when(after_s: float, began_s: int = began_s) -> int:
            return round((now_s - began_s + after_s) * 1e6)

        yield step("requested", reason="2 devices drift", time_us=when(0), **common)
        for number in (1, 2, 3):
            now = {**common, "round": number, "time_us": when(100 * number)}
            yield step("started", metrics={"nodes": 12}, **now)
            for node in range(11):
                yield step("admitted", device=f"pump-{node:02}", samples=640, **now)
            yield step("refused", device="pump-31", reason="norm: 9.1 is too large", **now)
            yield step("aggregated", samples=7040, metrics={"seconds": 6.2}, **now)
            share = first + 0.012 * number if outcome == "promoted" else first - 0.004 * number
            figures = {"held_out": share, "held_out_segments": 1200.0}
            yield step("evaluated", metrics=figures, **now)
        gate = {"devices_base": 0.91, "devices": 0.93, "devices_segments": 3600.0,
                "held_out_base": first, "held_out": share, "held_out_segments": 1200.0,
                "held_out/class idle": 0.01, "held_out/class idle/segments": 400.0,
                "devices/group north": 0.04, "devices/group north/segments": 900.0}  # fmt: skip
        last = {**common, "metrics": gate, "time_us": when(420)}
        yield step(outcome, model=NEW if run == "41028" else None, **last, reason=(
            "accuracy on devices 0.91 → 0.93, on held-out devices 0.86 → 0.90"
            if outcome == "promoted"
            else "on held-out devices 0.79 → 0.78 gains less than 0.005"))  # fmt: skip
        yield step("finished", reason=outcome, time_us=when(421), **common)


def observe(now_s: float) -> History:
    """Return what a console has seen after its hour, samples included."""
    history, random = absorbed(messages(now_s)), np.random.default_rng(3)
    found = (
        "canary passed: 11 devices, 351 windows, agreement with the teacher 0.94 (0.91 expected)"
    )
    for ago_s in range(1480, -120, -30):
        far = (1500 - ago_s) / 1500
        worse, fine = 0.1 * np.exp(-4 * far), 3 * np.exp(9 * far)
        odds = Odds(round((now_s - ago_s) * 1e6), worse, fine + float(random.normal(0, 0.5)))
        history.view.evidence.note(NEW, found, odds)
    for ago_s in range(HOUR_S, 0, -10):
        rate = float(DEVICES * 1.6 + random.normal(0, 0.4))
        history.sample(now_s - ago_s, rate, int(random.integers(80, 240)))
    return history
