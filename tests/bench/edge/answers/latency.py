"""How long an answer takes, beside a bare onnxruntime call, and what holds it up."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edge_client.control.ipc import ask, call
from streams.contract.errors import Retryable
from streams.contract.task import load_task
from streams.contract.work import AgentRequest, Label, WorkRequest
from tests.bench.edge.answers.driver import ACCEPTED, ANSWER, BARE, WEIGHTS_FILE, DriverPlan
from tests.bench.edge.answers.quantiles import Times
from tests.bench.edge.footprint import Footprint, footprint
from tests.bench.edge.stage import NOWHERE, Device, Stage, full_disk
from tests.bench.edge.tasks import HOP_S, TASKS
from tests.bench.report import Cell, Goal, Results, Table

SLOW, PACE, FULL_SPEED = 50, 800, 0  # segments a second
PACES = {SLOW: "50 a second", PACE: "800 a second", FULL_SPEED: "full speed"}
WARM_S = 2.0
UP, DOWN, FULL_DISK = "broker in reach", "no broker", "disk full"
CONDITIONS = {SLOW: (UP,), PACE: (UP, DOWN, FULL_DISK), FULL_SPEED: (UP,)}
STARTS = "trainer starts"
US = 1e6


@dataclass
class Phases:
    """Stretches of time by what went on in them (CLOCK_MONOTONIC)."""

    spans: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    errors: set[str] = field(default_factory=set)
    trainings: int = 0

    def add(self, name: str, began: float) -> None:
        self.spans.setdefault(name, []).append((began, time.monotonic()))

    def of(self, name: str, timed: np.ndarray, what: int) -> Times:
        """What was timed in a phase, in microseconds."""
        at = timed[:, 0]
        inside = np.zeros(len(timed), bool)
        for began, ended in self.spans.get(name, []):
            inside |= (at >= began) & (at < ended)
        rows = timed[inside & (timed[:, 1] == what)]
        return Times(rows[:, 0], rows[:, 2] * US)


@dataclass(frozen=True)
class Timed:
    """What one driver has timed in one phase."""

    answers: Times
    accepted: Times
    bare: Times

    @classmethod
    def of(cls, phases: Phases, name: str, timed: np.ndarray) -> "Timed | None":
        found = cls(*(phases.of(name, timed, what) for what in (ANSWER, ACCEPTED, BARE)))
        return found if len(found.answers) and len(found.bare) else None


@dataclass(frozen=True)
class Drive:
    """What came of a driver: `timed` as driver.py has it, seconds to its first answer in the spool,
    its memory at the end."""

    phases: Phases
    timed: np.ndarray
    first_s: float
    memory: Footprint


COLUMNS = [
    "", "answers", "p50 us", "p90 us", "p99 us", "bare p50", "bare p90", "p50 to bare",
    "to memory p50", "p90 to the first", "p99 to the first", "others' load",
]  # fmt: skip


def latency(stage: Stage, results: Results) -> None:
    """Alone and while it fine-tunes: with a broker, without, and on a full disk."""
    for pace, title in PACES.items():
        rows: list[list[Cell]] = []
        remarks: list[str] = []
        first: Timed | None = None
        for condition in CONDITIONS[pace]:
            if condition == FULL_DISK and os.geteuid() != 0:
                remarks.append("A full disk is measured by root only.")
                continue
            with stage.quietly() as load:
                run = drive(stage, condition, pace)
            for name in ("idle", STARTS, "fine-tuning"):
                found = Timed.of(run.phases, name, run.timed)
                if found is None:
                    continue
                first = first or found
                least = stage.size.p99_answers
                rows.append(cells(f"{condition}, {name}", found, first, least, load.others))
                results.goals += goals(f"{condition}, {name}, {title}", found, first, least)
            told = "; ".join(sorted(run.phases.errors)) or "none failed"
            remarks.append(f"{condition}: {run.phases.trainings} trainings, {told}.")
        text = f"{_text(stage.size.p99_answers)} {' '.join(remarks)}"
        results.tables.append(Table(f"Answers, {title}", text, COLUMNS, rows))


def _text(least: int) -> str:
    return (
        "The agent's whole way to answer (`Answers.answer`): infer, hand the event over to the "
        "spool's memory, count. A bare call is onnxruntime alone, one thread, timed on every "
        "fourth segment in the same process. *To memory* is the part until the recorder has the "
        "event. In brackets: the 95 % interval of a bootstrap of blocks of a second. A p99 is "
        f"claimed where there are {least:,} answers."
    )


def cells(name: str, found: Timed, first: Timed, least: int, others: float) -> list[Cell]:
    count, bare = len(found.answers), found.bare
    sure = min(count, len(first.answers)) >= least
    return [
        name, count, found.answers.quantile(0.5), found.answers.quantile(0.9),
        found.answers.quantile(0.99) if count >= least else None,
        bare.quantile(0.5), bare.quantile(0.9), found.answers.ratio(bare, 0.5).median,
        found.accepted.quantile(0.5).median, found.answers.ratio(first.answers, 0.9),
        found.answers.ratio(first.answers, 0.99) if sure else None, f"{others:.0%}",
    ]  # fmt: skip


def goals(name: str, found: Timed, first: Timed, least: int) -> list[Goal]:
    """Of the p99 where there are enough answers, else of the p90; none while a trainer starts."""
    if found is first:
        ratio = found.answers.ratio(found.bare, 0.5)
        return [Goal(f"answer / bare call, p50, {name}", ratio, at_most=1.5)]
    if STARTS in name:
        return []
    sure = min(len(found.answers), len(first.answers)) >= least
    text, share = ("p99 / p99", 0.99) if sure else ("p90 / p90", 0.9)
    ratio = found.answers.ratio(first.answers, share)
    return [Goal(f"{text} idle, {name}", ratio, at_most=1.5)]


def drive(
    stage: Stage,
    condition: str,
    pace: int,
    engine: str = "onnxruntime",
    *,
    slices: int | None = None,
    trains: bool = True,
) -> Drive:
    """Run a driver through its phases."""
    folder = stage.new_folder(condition.replace(" ", "-"), TASKS["segment"])
    bootstrap = NOWHERE if condition == DOWN else stage.kafka.settings.bootstrap
    plan = DriverPlan(TASKS["segment"], str(folder), bootstrap, pace * HOP_S, engine)
    argv = [str(stage.edge_train), "-m", "tests.bench.edge.answers.driver", plan.argument()]
    phases = Phases()
    slice_s = stage.size.slices_s[pace]
    with ExitStack() as stack:
        fill = None
        if condition == FULL_DISK:
            fill = stack.enter_context(full_disk(folder / "device"))
        device = stack.enter_context(stage.device(argv, folder, folder / "device"))
        first_s = device.first_answer_s()
        time.sleep(WARM_S)
        if fill is not None:
            stack.enter_context(_kept_full(fill))
        if trains:
            train_for(device, folder, phases, STARTS, 0.0)
        for _ in range(slices or stage.size.slices):
            began = time.monotonic()
            time.sleep(slice_s)
            phases.add("idle", began)
            if trains:
                train_for(device, folder, phases, "fine-tuning", slice_s)
        memory = footprint(device.pid)
        device.end()
        timed = np.load(folder / "timed.npy")
    return Drive(phases, timed, first_s, memory)


@contextmanager
def _kept_full(fill: Callable[[], None]) -> Iterator[None]:
    """What the device frees is taken again at once."""
    ending = threading.Event()

    def keep() -> None:
        while not ending.wait(0.1):
            fill()

    fill()
    thread = threading.Thread(target=keep)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


def train_for(device: Device, folder: Path, phases: Phases, name: str, seconds: float) -> None:
    """Fine-tune again and again, at least once; all segments that the device has are labelled."""
    task = load_task(TASKS["segment"])
    weights = (folder / WEIGHTS_FILE).read_bytes()
    request = WorkRequest(
        op="train", run="bench", round=1, task=task.name, task_version=task.version,
        base="1-bench", epochs=task.training.epochs, batch_size=task.training.batch_size,
        learning_rate=task.training.learning_rate,
    )  # fmt: skip
    everything = Label(first_us=0, last_us=2**62, label=[1.0])
    ends = time.monotonic() + seconds
    while True:
        with contextlib.suppress(Retryable):
            ask(device.socket(), AgentRequest(op="label", labels=[everything]))
        began = time.monotonic()
        reply, _ = call(device.socket(), request, weights, 120.0)
        if reply.error is None:
            phases.add(name, began)
            phases.trainings += 1
        else:
            phases.errors.add(reply.error.splitlines()[0][:120])
            time.sleep(0.2)
        if time.monotonic() > ends:
            return
