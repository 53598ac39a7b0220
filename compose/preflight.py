"""Looking at a task before its first run: its data, its models, and what it costs."""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from streams.contract.errors import TaskError, UsageError, line_of, own_line
from streams.contract.task import ROLES, Device, OnnxFile, Task, check_model, load_task
from streams.contract.task.channels import example
from streams.segments.findings import Finding, findings, outcome_finding
from streams.segments.metric_trial import metric_findings
from streams.segments.survey import READINGS, Survey, surveys

EVENT_BYTES = 120  # of an event beside its segment and outputs, compressed; measured on `har`
STEPS = 2
BYTES = {"float32": 4, "float16": 2}  # of a number on the way
QUICK_READINGS, DEVICES_A_ROLE = 500, 3


@dataclass(frozen=True)
class ModelReport:
    """The device model. parameters: 0 of a graph, which does not learn. learned: how many numbers
    devices train and send, of which `factors` are low-rank ones; `round_bytes` is what a device
    sends in a round. float_bytes, int8_bytes: of what answers, the graph with its weights; None in
    float alone. seconds: two training steps and the export."""

    parameters: int
    learned: int
    factors: int
    round_bytes: int
    float_bytes: int
    int8_bytes: int | None
    seconds: float


@dataclass(frozen=True)
class TaskReport:
    """What was found; `model` is None where none could be built. Sizes are a device's."""

    task: str
    surveys: list[Survey]
    findings: list[Finding]
    windows_per_minute: float | None
    events_per_day: float | None
    bytes_per_day: float | None
    model: ModelReport | None = None

    @property
    def failed(self) -> bool:
        return any(finding.level == "error" for finding in self.findings)


def check_data(task: Task, readings: int = READINGS) -> TaskReport:
    """Survey every device of the task."""
    devices = _devices(task)
    surveyed = surveys(task, devices, readings)
    found = [*metric_findings(task), *findings(task, surveyed, time.time_ns() // 1000)]
    if task.source == "recorded":
        found += _of_outcomes(task, devices, readings)
    events = None if task.rate_hz is None else 86_400 * task.rate_hz / task.segment.hop
    windows = None if events is None else events / 1440 / task.segments_per_window
    return TaskReport(
        task.name,
        surveyed,
        found,
        windows_per_minute=windows,
        events_per_day=events,
        bytes_per_day=None if events is None else events * _event_bytes(task),
    )


def check_quickly(task: Task, say: Callable[[str], None]) -> None:
    """Try the metric, and look at a few recordings of each role before anything is trained.

    Warnings are said; TaskError for the first finding that cannot work. A live source is not read:
    its sensors are elsewhere.
    """
    chosen: list[Device] = []
    found = metric_findings(task)
    if task.source != "live":
        for role in ROLES:
            chosen += [device for device in _devices(task) if device.role == role][:DEVICES_A_ROLE]
        found += findings(task, surveys(task, chosen, QUICK_READINGS))
        found += [f for f in _of_outcomes(task, chosen, QUICK_READINGS) if f.level == "error"]
    named = {"metric", *(device.name for device in chosen)}  # not what a sample says
    for finding in found:
        text = f"{finding.where}: {finding.text}: {finding.advice}"
        if finding.level == "error":
            raise TaskError(f"task {task.name!r}: {text}")
        if finding.where.partition(",")[0] in named:
            say(f"warning   {text}")


def _of_outcomes(task: Task, devices: list[Device], readings: int) -> list[Finding]:
    """Try `Task.outcomes` with the first device of the fleet."""
    name = next((device.name for device in devices if device.role == "fleet"), None)
    found = None if name is None else outcome_finding(task, name, readings)
    return [] if found is None else [found]


def check_task(task: Task, readings: int = READINGS) -> TaskReport:
    """As check_data; also build, train two steps and export the device model."""
    report = check_data(task, readings)
    try:
        return replace(report, model=try_models(task))
    except TaskError as exc:
        field = exc.field or "build_model"
        failed = Finding("error", field, str(exc), f"fix `{field}` in the task file")
        return replace(report, findings=[failed, *report.findings])
    except UsageError as exc:  # the file of the first model
        failed = Finding("error", "first_model", str(exc), "name another file as `first_model`")
        return replace(report, findings=[failed, *report.findings])


def _devices(task: Task) -> list[Device]:
    task.device_names()  # which raises for a device that is listed twice
    return list(task.devices())


def _event_bytes(task: Task) -> float:
    channels, samples = task.segment_shape
    segment = 4 * channels * samples if task.upload == "segment" else 0
    return EVENT_BYTES + 4 * task.outputs + segment


def try_models(task: Task) -> ModelReport:
    """Build the models, train the device model for two steps, export it."""
    import numpy as np

    from federation.bootstrap.first_models import loaded, read_weights
    from federation.bootstrap.onnx_export import export_graph, read_graph
    from federation.evaluation.quantization import Quantizer
    from streams.contract.weights.part import SUFFIX, Part
    from streams.learning.factors import check_factors
    from streams.learning.learning import build_model, fit, segment_loss

    began = time.monotonic()
    check_model(task)
    check_factors(task)
    if isinstance(task.build_model, OnnxFile):
        segments = np.zeros((1, *task.segment_shape), np.float32)
        graph = read_graph(task, task.build_model).graph
        int8 = Quantizer(task, segments).int8(graph, {})
        small = None if int8 is None else len(int8)
        return ModelReport(0, 0, 0, 0, len(graph), small, time.monotonic() - began)
    model = build_model(task)
    if task.first_model:
        path = Path(task.first_model)
        loaded(model, read_weights(path)[0], path)
        model.train()
    count = STEPS * task.training.batch_size
    segments = example(task.channels, count, task.segment.samples)
    labels = np.zeros((count, task.label_size), np.float32)
    try:
        fit(
            model, count, segment_loss(task, model, segments, labels), epochs=1,
            batch_size=task.training.batch_size, learning_rate=task.training.learning_rate, seed=0,
        )  # fmt: skip
        weights = {name: value.numpy() for name, value in model.state_dict().items()}
        graph = export_graph(task, model.eval())
        int8 = Quantizer(task, segments).int8(graph, weights)
    except TaskError:
        raise
    except Exception as exc:  # a user's model
        text = f"{type(exc).__name__}: {line_of(exc)}{own_line(exc)}"
        raise TaskError(f"training or exporting the model fails: {text}") from exc
    floats = {name: value for name, value in weights.items() if value.dtype == np.float32}
    sent = Part(task.training, "", floats).first
    return ModelReport(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        learned=sum(tensor.size for tensor in sent.values()),
        factors=sum(tensor.size for name, tensor in sent.items() if name.endswith(SUFFIX)),
        round_bytes=BYTES[task.training.payload] * sum(tensor.size for tensor in sent.values()),
        float_bytes=len(graph) + sum(value.nbytes for value in weights.values()),
        int8_bytes=None if int8 is None else len(int8),
        seconds=time.monotonic() - began,
    )


# --- report ---------------------------------------------------------------------------------------


def show(report: TaskReport, console: Console) -> None:
    """Print the devices, the sizes and the findings."""
    console.print(_table(report))
    for line in _lines(report):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for finding in report.findings:
        colour = "red" if finding.level == "error" else "yellow"
        text = f"{finding.where}: {finding.text}: {finding.advice}"
        console.print(f"[{colour}]{finding.level:<9}[/{colour}] {escape(text)}", soft_wrap=True)
    if not report.findings:
        console.print("No problems found.", highlight=False)


def _table(report: TaskReport) -> Table:
    table = Table(title=f"{report.task}: the first readings of {len(report.surveys)} devices")
    for name in ("device", "role"):
        table.add_column(name)
    for name in ("readings", "every", "segments", "labelled"):
        table.add_column(name, justify="right")
    for name in ("times", "labels", "skipped"):
        table.add_column(name)
    for one in report.surveys:
        table.add_row(
            one.device,
            one.role,
            str(one.readings),
            _every(one.period_s),
            str(one.segments),
            str(one.labelled),
            _times(one),
            ", ".join(f"{name} {n}" for name, n in one.labels.items()) or "none",
            ", ".join(f"{why} {n}" for why, n in sorted(one.skipped.items())) or "none",
        )
    return table


def _every(period_s: float | None) -> str:
    if period_s is None:
        return "-"
    return f"{period_s:.3g} s" if period_s < 1_000 else f"{period_s / 3600:,.3g} h"


def _size(count: float) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


def _frequency(a_minute: float) -> str:
    if a_minute >= 1:
        return f"{a_minute:.3g} window{'' if a_minute == 1 else 's'} a minute"
    a_day = a_minute * 24 * 60
    return f"{a_day:.3g} window{'' if a_day == 1 else 's'} a day"


def _times(one: Survey) -> str:
    if one.first_us is None:
        return "-"
    return "dated" if one.dated else "since the start"


def _lines(report: TaskReport) -> list[str]:
    lines = []
    if report.events_per_day is not None and report.bytes_per_day is not None:
        lines.append(
            f"a device makes {report.events_per_day:,.0f} events a day and sends about "
            f"{_size(report.bytes_per_day)} before compression; "
            f"{_frequency(report.windows_per_minute or 0.0)}"
        )
    if sensors := [one for one in report.surveys if one.read_s is not None]:
        counts = sorted(one.readings for one in sensors)
        came = " to ".join(str(count) for count in sorted({counts[0], counts[-1]})) + " readings"
        lines.append(f"sensors of the fleet were read for {sensors[0].read_s:g} s each: {came}")
    if report.model is not None:
        lines += _model_lines(report.model)
    return lines


def _model_lines(model: ModelReport) -> list[str]:
    size, took = _size(model.float_bytes), f"({model.seconds:.1f} s)"
    small = model.int8_bytes
    int8 = "" if small is None else f"; devices answer in int8, {_size(small)} of {size}"
    if not model.parameters:
        return [f"the graph of the device model ({size}) answers and does not learn {took}{int8}"]
    words = f"the device model has {model.parameters:,} parameters ({size}), trains and exports"
    learned = f"{model.learned:,} numbers"
    if model.factors:
        learned += f", {model.factors:,} of them in low-rank factors"
    sends = f"in a round a device trains and sends {learned}, {_size(model.round_bytes)}"
    return [f"{words} {took}{int8}", sends]


# --- the import of a task file, as a device does it: without torch -------------------------------

WITHIN_S = 60.0


def import_finding(reference: str) -> Finding | None:
    """Return where the file of a task imports torch; None if it does not. A separate process
    imports it, in which torch cannot be imported."""
    command = [sys.executable, "-m", "compose.preflight", reference]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S)
    except subprocess.TimeoutExpired:
        return None  # it was imported here before: the machine is busy
    if done.returncode != 3:
        return None
    text = f"importing the file needs torch ({done.stdout.splitlines()[-1]})"
    advice = "import torch inside of `build_model`: devices import this file without it"
    return Finding("error", "imports", text, advice)


def main() -> None:
    sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it fails
    try:
        load_task(sys.argv[1])
    except TaskError as exc:
        cause = exc.__cause__
        if isinstance(cause, ImportError) and (cause.name or "").partition(".")[0] == "torch":
            sys.stdout.write(f"{own_line(cause).removeprefix(', ') or cause}\n")
            sys.exit(3)


if __name__ == "__main__":
    main()
