"""The report of a job: one HTML page that loads nothing, with counts, errors, drift, accuracy by
class, and its input."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from itertools import pairwise

import numpy as np

from streams.batch.answering.drift import reference_of
from streams.batch.jobs.job_folder import JobFolder
from streams.batch.jobs.manifest import counts_of, manifest_of
from streams.batch.jobs.scoring import artifact_of
from streams.batch.records.documents import Plan, Specification
from streams.batch.records.progress import Manifest
from streams.contract.errors import TidewheelError
from streams.contract.window_report import ChannelDrift
from streams.drift.distances import shares
from streams.drift.reference import Feature, Reference
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
figure { display: inline-block; margin: .5rem 1rem .5rem 0; } figcaption, .small { color: #5b6975;
  font-size: .85rem; } .before { fill: #9aa7b2; } .now { fill: #00796b; }
"""


def write_report(job: JobFolder) -> None:
    """Write the page of a job as it is now; raise TidewheelError if it cannot be written."""
    text = page_of(job)
    try:
        write_atomic(job.report, text.encode())
    except OSError as exc:
        raise TidewheelError(f"the report {job.report} cannot be written: {exc}") from exc


def page_of(job: JobFolder) -> str:
    """Return the page of a job."""
    specification, status = job.specification(), job.state()
    plan = job.plan() or Plan(files=[], shards=[])
    reference = reference_of(artifact_of(job, specification))
    found = manifest_of(job, specification, plan, status.state, status.reason, reference)
    counts = np.asarray(counts_of(job, specification, plan).observed.cells, np.int64)
    errors = sorted(found.errors.items(), key=lambda one: -one[1])
    body = [
        f"<h1>{escape(found.task)}: batch job {escape(specification.id)}</h1>",
        _summary(found, specification),
        _table(["Error", "Rows"], errors, "Errors"),
        _table(["Reason", "Readings"], found.broken.items(), "Readings that break a segment"),
        _drift(found, reference, counts, specification),
        _classes(found),
        _inputs(found),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>'
        f"{escape(found.task)} {escape(specification.id)}</title><style>{STYLE}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _summary(found: Manifest, specification: Specification) -> str:
    accuracy = f"{found.correct / found.labelled:.4f}" if found.labelled else "no labels"
    submitted = datetime.fromtimestamp(found.started_us / 1e6, UTC)
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
        ("Submitted", submitted.strftime("%Y-%m-%d %H:%M:%S UTC")),
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
    parts = list(zip(reference.features, reference.split(counts), strict=True))
    worst = [
        _histogram(one, feature, own, specification.task.outputs)
        for one in report.channels[:WORST]
        for feature, own in parts
        if (feature.channel, feature.kind) == (one.channel, one.kind)
    ]
    return (
        f"<h2>Drift</h2><p>Against the reference that the model carries: <b>{verdict}</b>. The "
        f"mean of distances, as MLRun decides it, is {theirs.value:.3f}: <b>"
        f"{'no drift' if theirs.status == 'none' else theirs.status}</b>.</p>{''.join(worst)}"
        + _channels(report.channels[:LISTED], "")
        + _channels(found.drift.labels, "Labels against the reference's answers")
    )


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


def _histogram(
    drift: ChannelDrift, feature: Feature, counts: np.ndarray, classes: Sequence[str]
) -> str:
    """Return the shares of each cell, the reference beside the job."""
    edges = feature.edges
    inner = [f"{a:.3g}…{b:.3g}" for a, b in pairwise(edges)]
    if not feature.ordered and len(classes) == len(inner):
        inner = list(classes)
    names = [f"< {edges[0]:.3g}", *inner, f"≥ {edges[-1]:.3g}", "null", "not finite"]
    before, now = shares(np.asarray(feature.counts)), shares(counts)
    bars = []
    for i, name in enumerate(names):
        for share, kind, left in ((before[i], "before", 0), (now[i], "now", 9)):
            title = f"<title>{escape(name)}: {share:.1%} {kind}</title>"
            place = f'x="{22 * i + left}" y="{100 * (1 - share):.1f}" height="{100 * share:.1f}"'
            bars.append(f'<rect class="{kind}" width="8" {place}>{title}</rect>')
    caption = f"{drift.channel} {drift.kind}, PSI {drift.psi:.2f} (grey: the reference)"
    return (
        f'<figure><svg width="{22 * len(names)}" height="100">{"".join(bars)}</svg>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _classes(found: Manifest) -> str:
    rows = [
        (name, one.labelled, one.answered, f"{one.correct / one.labelled:.3f}")
        for name, one in found.classes.items()
        if one.labelled
    ]
    head = ["Class", "Labelled", "So answered", "Share that is right"]
    return _table(head, rows, "Accuracy by class")


def _inputs(found: Manifest) -> str:
    rows = [(one.name, one.rows, one.bytes, one.sha256[:12]) for one in found.inputs[:LISTED]]
    more = len(found.inputs) - len(rows)
    note = f'<p class="small">and {more:,} more files</p>' if more else ""
    return _table(["File", "Rows", "Bytes", "SHA-256"], rows, "Input") + note


def _table(head: Sequence[str], rows: Iterable[Sequence[object]], title: str) -> str:
    cells = ["<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in rows]
    if not cells:
        return ""
    top = "".join(f"<th>{escape(name)}</th>" for name in head) if any(head) else ""
    heading = f"<h2>{escape(title)}</h2>" if title else ""
    return f"{heading}<table><tr>{top}</tr>{''.join(cells)}</table>"


def _cell(value: object) -> str:
    if isinstance(value, int):
        return f'<td class="n">{value:,}</td>'
    kind = ' class="alarm"' if value == "drift" else ""
    return f"<td{kind}>{escape(str(value))}</td>"
