"""What is known of a task before its first run, and how it is shown."""

from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from streams.segments.findings import Finding
from streams.segments.survey import Survey


@dataclass(frozen=True)
class TaskReport:
    """What was found. `model_s` is the time of two training steps and the export, None where no
    model was built; sizes are a device's."""

    task: str
    surveys: list[Survey]
    findings: list[Finding]
    windows_per_minute: float | None
    events_per_day: float | None
    bytes_per_day: float | None
    model_s: float | None = None
    parameters: int | None = None

    @property
    def failed(self) -> bool:
        return any(finding.level == "error" for finding in self.findings)


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
            "-" if one.period_s is None else f"{one.period_s:g} s",
            str(one.segments),
            str(one.labelled),
            _times(one),
            ", ".join(f"{name} {n}" for name, n in one.labels.items()) or "none",
            ", ".join(f"{why} {n}" for why, n in sorted(one.skipped.items())) or "none",
        )
    return table


def _size(count: float) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"


def _frequency(a_minute: float) -> str:
    if a_minute >= 1:
        return f"{a_minute:g} window{'' if a_minute == 1 else 's'} a minute"
    a_day = a_minute * 24 * 60
    return f"{a_day:g} window{'' if a_day == 1 else 's'} a day"


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
    if report.parameters is not None:
        lines.append(
            f"the device model has {report.parameters:,} parameters, trains and exports "
            f"({report.model_s:.1f} s)"
        )
    return lines
