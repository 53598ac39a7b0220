"""The page of a job: counts, errors, drift, accuracy by class, and its input."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path

import numpy as np

from streams.batch.answering.watching import reference_of
from streams.batch.jobs.job_folder import JobFolder
from streams.batch.jobs.manifest import counts_of, manifest_of
from streams.batch.jobs.scoring import artifact_of
from streams.batch.records.documents import Plan, Specification
from streams.batch.records.progress import Manifest
from streams.batch.report.plots import Pair, by_class, histograms
from streams.contract.errors import TidewheelError
from streams.contract.window_report import ChannelDrift
from streams.drift.reference import Reference
from streams.runtime.disk import write_atomic

WORST = 6  # features whose histograms are shown
LISTED = 50  # features, and input files
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; margin: .5rem 0; } th { text-align: left; font-weight: 600; }
th, td { padding: .2rem .9rem .2rem 0; border-bottom: 1px solid #dfe5ea; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; } .alarm { color: #b3261e; }
svg { max-width: 100%; height: auto; } .small { color: #5b6975; font-size: .85rem; }
"""


def write_report(folder: JobFolder, path: Path) -> None:
    """Write the page of a job as it is now; raise TidewheelError if it cannot be written."""
    text = page_of(folder)
    try:
        write_atomic(path.absolute(), text.encode())
    except OSError as exc:
        raise TidewheelError(f"the report {path} cannot be written: {exc}") from exc


def page_of(folder: JobFolder) -> str:
    """Return the page of a job."""
    specification, status = folder.specification(), folder.state()
    plan = folder.plan() or Plan(files=[], shards=[])
    reference = reference_of(artifact_of(folder, specification))
    found = manifest_of(folder, specification, plan, status.state, status.reason, reference)
    counts = np.asarray(counts_of(folder, specification, plan).observed.cells, np.int64)
    body = [
        f"<h1>{_t(found.task)}: batch job {_t(specification.id)}</h1>",
        _summary(found, specification),
        _table(["Error", "Rows"], _most_first(found.errors), "Errors"),
        _table(["Reason", "Readings"], found.broken.items(), "Readings that break a segment"),
        _drift(found, reference, counts, specification),
        _classes(found),
        _inputs(found),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_t(found.task)} '
        f"{_t(specification.id)}</title><style>{STYLE}</style></head><body>"
        f"{''.join(body)}</body></html>\n"
    )


def _most_first(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda one: -one[1])


def _summary(found: Manifest, specification: Specification) -> str:
    accuracy = f"{found.correct / found.labelled:.4f}" if found.labelled else "no labels"
    rows = [
        ("State", f"{found.state} {found.reason}".strip()),
        ("Model", f"{found.model}, task version {found.task_version}"),
        ("Output", f"{found.output} ({specification.output_format})"),
        ("Rows", f"{found.processed:,} of {found.total:,}, {found.excluded:,} excluded"),
        ("Answers", f"{found.succeeded:,}"),
        ("Errors", f"{found.processed - found.succeeded:,}"),
        ("Accuracy", f"{accuracy}{f' of {found.labelled:,} labelled' if found.labelled else ''}"),
        ("Shards", f"{found.completed:,} of {found.shards:,}, {found.attempts:,} attempts"),
        ("Speed", f"{found.rows_per_s:,.0f} rows/s in {found.seconds:,.3g} s of scoring"),
        ("Submitted", _moment(found.started_us)),
    ]
    return _table(["", ""], rows, "")


def _drift(
    found: Manifest, reference: Reference | None, counts: np.ndarray, specification: Specification
) -> str:
    if found.drift is None or reference is None:
        why = "the model has no reference" if reference is None else "there are no answers"
        return f"<h2>Drift</h2><p>Not measured: {why}.</p>"
    report, theirs = found.drift.inputs_and_answers, found.drift.mean_of_distances
    verdict = f"drift in {report.share:.0%} of the channels" if report.alarm else "no drift"
    if not report.decided:
        verdict = f"undecided: {report.segments:,} segments, {reference.minimum:,} are needed"
    channels = report.channels
    worst = [pair for one in channels[:WORST] if (pair := _pair(one, reference, counts))]
    pictures = histograms(worst, specification.task.outputs) if worst else ""
    return (
        f"<h2>Drift</h2><p>Against the reference that the model carries: <b>{verdict}</b>. The "
        f"mean of distances, as MLRun decides it, is {theirs.value:.3f}: "
        f"<b>{'no drift' if theirs.status == 'none' else theirs.status}</b>.</p>{pictures}"
        + _channels(channels[:LISTED], "")
        + (_channels(found.drift.labels, "Labels against the reference's answers"))
    )


def _pair(drift: ChannelDrift, reference: Reference, counts: np.ndarray) -> Pair | None:
    parts = reference.split(counts)
    for feature, own in zip(reference.features, parts, strict=True):
        if (feature.channel, feature.kind) == (drift.channel, drift.kind):
            return Pair(f"{drift.channel} {drift.kind}, PSI {drift.psi:.2f}", feature, own)
    return None


def _channels(channels: Sequence[ChannelDrift], title: str) -> str:
    head = ["Feature", "PSI", "Threshold", "Hellinger", "Total variation", "Rows", ""]
    rows = [
        (
            f"{one.channel} {one.kind}", f"{one.psi:.3f}", f"{one.threshold:.3f}",
            f"{one.hellinger:.3f}", f"{one.total_variation:.3f}", one.n,
            "drift" if one.alarm else "",
        )
        for one in channels
    ]  # fmt: skip
    return _table(head, rows, title)


def _classes(found: Manifest) -> str:
    if not any(one.labelled for one in found.classes.values()):
        return ""
    rows = [
        (name, one.labelled, one.answered, f"{one.correct / one.labelled:.3f}")
        for name, one in found.classes.items()
        if one.labelled
    ]
    table = _table(["Class", "Labelled", "So answered", "Share that is right"], rows, "")
    return f"<h2>Accuracy by class</h2>{by_class(found.classes)}{table}"


def _inputs(found: Manifest) -> str:
    rows = [(one.name, one.rows, one.bytes, one.sha256[:12]) for one in found.inputs[:LISTED]]
    more = len(found.inputs) - len(rows)
    note = f'<p class="small">and {more:,} more files</p>' if more else ""
    return _table(["File", "Rows", "Bytes", "SHA-256"], rows, "Input") + note


def _table(head: Sequence[str], rows: Iterable[Sequence[object]], title: str) -> str:
    cells = ["<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in rows]
    if not cells:
        return ""
    top = "".join(f"<th>{_t(name)}</th>" for name in head) if any(head) else ""
    heading = f"<h2>{_t(title)}</h2>" if title else ""
    return f"{heading}<table><tr>{top}</tr>{''.join(cells)}</table>"


def _cell(value: object) -> str:
    if isinstance(value, int):
        return f'<td class="n">{value:,}</td>'
    kind = ' class="alarm"' if value == "drift" else ""
    return f"<td{kind}>{_t(str(value))}</td>"


def _t(text: str) -> str:
    return escape(text)


def _moment(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
