"""The manifest of a job, whether its sums agree, and its report: one HTML page that loads nothing,
with counts, errors, drift, accuracy by class, and its input."""

import json
import math
from collections.abc import Iterable, Sequence
from functools import reduce
from html import escape
from pathlib import Path

import pyarrow.parquet as pq

from streams.batch.jobs.answers import drift_of, reference_of
from streams.batch.jobs.job_folder import JobFolder, now_us, size_of
from streams.batch.jobs.scoring import artifact_of
from streams.batch.records.progress import Counts, Manifest, RowCounts, ShardRecord, State
from streams.batch.records.specification import FILES, Plan, Specification
from streams.batch.sinks.files import BEDROCK_MANIFEST, MANIFEST, part_path
from streams.batch.sinks.output import Sink
from streams.batch.sources.places import put
from streams.contract.errors import TidewheelError
from streams.runtime.disk import write_atomic


def counts_of(folder: JobFolder, specification: Specification, plan: Plan) -> Counts:
    """Return what became of the rows of all completed shards."""
    records = folder.done(plan, specification).values()
    return reduce(Counts.plus, (record.counts for record in records), Counts())


def verdict(
    folder: JobFolder, specification: Specification, plan: Plan, sink: Sink | None
) -> tuple[State, str]:
    """Return the state in which a job ends whose shards are all done."""
    for number, shard in enumerate(plan.shards):
        record = folder.record(number)
        if record is None or record.counts.read != shard.rows:
            return "Failed", f"the counts of shard {number} are not those of its rows"
        if sink is not None:
            continue
        part = part_path(folder.folder, specification, plan, number)
        if size_of(part) != record.bytes:
            return "Failed", f"{part} is not as it was written"
        if part.suffix == ".parquet" and pq.read_metadata(part).num_rows != record.counts.processed:
            return "Failed", f"{part} has not the rows of its shard"
    counts = counts_of(folder, specification, plan)
    if counts.read != plan.total:
        return "Failed", "the sums do not agree"
    there = None if sink is None else sink.count()
    if there is not None and there != counts.processed:
        return "Failed", (
            f"the output has {there:,} rows of this job, {counts.processed:,} are due: it was "
            "changed by something else; score again into another --to"
        )
    return "Completed", ""


def write_manifest(folder: JobFolder, specification: Specification, manifest: Manifest) -> None:
    """Write it; objects under a URL get it beside them, too. Raise OSError."""
    data = manifest.model_dump_json(indent=2).encode() + b"\n"
    local = Path(specification.output) if specification.in_files else folder.folder
    write_atomic(local / MANIFEST, data)
    beside = {} if specification.in_files else {MANIFEST: data}
    if specification.output_format == "bedrock":
        sums = {
            "totalRecordCount": manifest.total,
            "processedRecordCount": manifest.processed,
            "successRecordCount": manifest.succeeded,
            "errorRecordCount": sum(manifest.errors.values()),
        }
        beside[BEDROCK_MANIFEST] = json.dumps(sums).encode()
    if specification.output_format not in FILES:
        return
    for name, content in beside.items():
        if specification.in_files:
            write_atomic(Path(specification.output) / name, content)
        else:
            put(content, f"{specification.output}/{name}")


def busy_s(records: Iterable[ShardRecord]) -> float:
    """Return for how long shards were scored: the time in which several were counts once, and that
    between two attempts of a job not at all."""
    seconds, until = 0.0, -math.inf
    spans = [(record.ended_us / 1e6 - record.seconds, record.ended_us / 1e6) for record in records]
    for begin, end in sorted(spans):
        seconds += max(0.0, end - max(begin, until))
        until = max(until, end)
    return seconds


def manifest_of(
    folder: JobFolder, state: State | None = None, reason: str = "", *, drift: bool = True
) -> Manifest:
    """Return what a job has done so far, from its folder, in a new state or in its own; raise
    UsageError if there is no job. drift: its model is read for that."""
    specification, status = folder.specification(), folder.state()
    plan = folder.plan() or Plan(files=[], shards=[])
    reference = reference_of(artifact_of(folder, specification)) if drift else None
    done = folder.done(plan, specification).values()
    counts, seconds = counts_of(folder, specification, plan), busy_s(done)
    attempts = [record.attempts for n in range(len(plan.shards)) if (record := folder.record(n))]
    return Manifest(
        state=state or status.state,
        reason=reason if state else status.reason,
        task=specification.task.name,
        task_version=specification.task.version,
        model=specification.model,
        digest=specification.digest,
        job=str(folder.folder),
        output=specification.output,
        shards=len(plan.shards),
        completed=len(done),
        attempts=sum(attempts),
        **{name: getattr(counts, name) for name in RowCounts.model_fields},
        total=plan.total,
        processed=counts.processed,
        classes=counts.observed.classes,
        drift=drift_of(reference, counts.observed),
        seconds=seconds,
        rows_per_s=counts.processed / seconds if seconds else 0.0,
        started_us=specification.created_us,
        ended_us=max(now_us() if state else status.updated_us, specification.created_us),
        inputs=plan.files,
    )


# --- the report -----------------------------------------------------------------------------------

LISTED = 50  # features, and input files
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
th, td { padding: .2rem .9rem .2rem 0; border-bottom: 1px solid #dfe5ea; text-align: left }
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
    specification, found = job.specification(), manifest_of(job)
    errors = sorted(found.errors.items(), key=lambda one: -one[1])
    files = [(one.name, one.rows, one.bytes, one.sha256[:12]) for one in found.inputs]
    classes = [
        (name, one.labelled, one.answered, f"{one.correct / one.labelled:.3f}")
        for name, one in found.classes.items()
        if one.labelled
    ]
    title = f"{found.task}: batch job {specification.id}"
    body = [
        _summary(found),
        _table("Errors", ["Error", "Rows"], errors),
        _table("Readings that break a segment", ["Reason", "Readings"], found.broken.items()),
        _drift(found),
        _table("Accuracy by class", ["Class", "Labelled", "So answered", "Right"], classes),
        _table("Input", ["File", "Rows", "Bytes", "SHA-256"], files[:LISTED]),
        f"<p>and {len(files) - LISTED:,} more files</p>" if len(files) > LISTED else "",
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        f"</title><style>{STYLE}</style></head><body><h1>{escape(title)}</h1>{''.join(body)}"
        "</body></html>\n"
    )


def _summary(found: Manifest) -> str:
    accuracy = "no labels"
    if found.accuracy is not None:
        accuracy = f"{found.accuracy:.4f} of {found.labelled:,} labelled"
    rows = [
        ("State", f"{found.state} {found.reason}"),
        ("Model", f"{found.model}, task version {found.task_version}"),
        ("Output", found.output),
        ("Rows", f"{found.processed:,} of {found.total:,}, {found.excluded:,} excluded"),
        ("Answers", found.succeeded),
        ("Errors", found.processed - found.succeeded),
        ("Accuracy", accuracy),
        ("Shards", f"{found.completed:,} of {found.shards:,}, {found.attempts:,} attempts"),
        ("Speed", f"{found.rows_per_s:,.0f} rows/s in {found.seconds:,.3g} s of scoring"),
    ]
    return _table("", [], rows)


def _drift(found: Manifest) -> str:
    if found.drift is None:
        why = "the model has no reference, or there are no answers"
        return f"<h2>Drift</h2><p>Not measured: {why}.</p>"
    theirs = found.drift.mean_of_distances
    head = ["Feature", "PSI", "Threshold", "Hellinger", "Total variation", "Rows", "Drift"]
    rows = [
        (
            f"{one.channel} {one.kind}", f"{one.psi:.3f}", f"{one.threshold:.3f}",
            f"{one.hellinger:.3f}", f"{one.total_variation:.3f}", one.n, "yes" * one.alarm,
        )
        for one in found.drift.inputs_and_answers.channels[:LISTED]
    ]  # fmt: skip
    return _table(
        f"Drift against the reference of the model: {found.drift.verdict}; the mean of distances, "
        f"as MLRun decides it, is {theirs.value:.3f}: {theirs.status}", head, rows,
    )  # fmt: skip


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    def cells(kind: str, values: Sequence[object]) -> str:
        texts = (f"{one:,}" if isinstance(one, int) else str(one) for one in values)
        return "<tr>" + "".join(f"<{kind}>{escape(one)}</{kind}>" for one in texts) + "</tr>"

    lines = [cells("td", row) for row in rows]
    if not lines:
        return ""
    return f"<h2>{escape(title)}</h2><table>{cells('th', head)}{''.join(lines)}</table>"
