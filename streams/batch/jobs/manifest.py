"""The manifest of a job, whether its sums agree, and its report in Markdown."""

import json
import math
from collections.abc import Iterable, Sequence
from functools import reduce

import pyarrow.parquet as pq

from streams.batch.jobs.answers import drift_of, metrics_of
from streams.batch.jobs.job_folder import JobFolder, now_us, size_of
from streams.batch.output_files import BEDROCK_MANIFEST, MANIFEST, part_path
from streams.batch.progress import Counts, Manifest, Plan, RowCounts, ShardRecord, State
from streams.batch.rows import BAD_LABEL
from streams.batch.specification import FILES, Specification
from streams.contract.documents import encoded
from streams.contract.errors import TidewheelError
from streams.contract.task.extensions import Sink
from streams.contract.task.metrics import named
from streams.learning.drift_reference import reference_of
from streams.runtime.files import open_store, write_atomic


def counts_of(folder: JobFolder, specification: Specification, plan: Plan) -> Counts:
    """Return what became of the rows of all completed shards."""
    records = folder.done(plan, specification)
    return reduce(Counts.plus, (record.counts for _, record in records), Counts())


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
    if not counts.succeeded and not counts.excluded and (counts.failed or counts.faulty):
        what = f"all {counts.failed:,} rows have errors{_by_reason(counts.errors)}"
        if not counts.failed:
            broken = "is broken" if counts.faulty == 1 else "are broken"
            of = _counted(counts.readings, "reading")
            what = f"{counts.faulty:,} of {of} {broken}{example_of(counts)}"
        return "Failed", f"no row has an answer: {what}"
    return "Completed", ""


def example_of(counts: RowCounts) -> str:
    """Return an example of the most frequent fault of readings in brackets, nothing without one."""
    if not (faults := counts.faults):
        return ""
    code = max(faults, key=lambda code: faults[code])
    return f" ({code} in {counts.examples[code]})"


def write_manifest(folder: JobFolder, specification: Specification, manifest: Manifest) -> None:
    """Write it into the output's folder or beside its objects; where these are remote, and for a
    table, into the job's folder. Raise OSError, or Retryable while a store is away."""
    data = encoded(manifest, indent=2) + b"\n"
    if not specification.in_files:
        write_atomic(folder.folder / MANIFEST, data)
    if specification.output_format not in FILES:
        return
    beside = {MANIFEST: data}
    if specification.output_format == "bedrock":
        sums = {
            "totalRecordCount": manifest.total,
            "processedRecordCount": manifest.processed,
            "successRecordCount": manifest.succeeded,
            "errorRecordCount": sum(manifest.errors.values()),
        }
        beside[BEDROCK_MANIFEST] = json.dumps(sums).encode()
    store = open_store(specification.output)
    for name, content in beside.items():
        store.write(name, content)


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
    reference = reference_of(folder.models(specification).artifact) if drift else None
    done = [one.replace(counts=Counts()) for _, one in folder.done(plan, specification)]
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
        **{name: getattr(counts, name) for name in RowCounts.__struct_fields__},
        total=plan.total,
        processed=counts.processed,
        classes=counts.observed.classes,
        metrics=metrics_of(counts),
        drift=drift_of(reference, counts.observed),
        seconds=seconds,
        rows_per_s=counts.processed / seconds if seconds else 0.0,
        started_us=specification.created_us,
        ended_us=max(now_us() if state else status.updated_us, specification.created_us),
        inputs=plan.files,
    )


# --- the report -----------------------------------------------------------------------------------

LISTED = 50  # features, and input files


def summary_of(found: Manifest) -> list[str]:
    """Return what became of a job, a line for a person each."""
    lines = [
        f"{found.processed:,} of {found.total:,} rows with {found.model} in {found.seconds:.3g} s, "
        f"{found.rows_per_s:,.0f} rows/s",
        f"{_counted(found.succeeded, 'answer')}, "
        f"{_counted(found.processed - found.succeeded, 'error')}{_by_reason(found.errors)}",
    ]
    if found.excluded:
        lines.append(f"{_counted(found.excluded, 'row')} excluded")
    if found.readings:
        broken = sum(found.broken.values())
        reasons = _by_reason(found.broken)
        readings = _counted(found.readings, "reading")
        lines.append(f"{readings}, breaking a segment: {broken:,}{reasons}")
        if late := sum(found.broken.get(code, 0) for code in ("backwards", "out-of-order")):
            than = f"{_counted(late, 'reading')} earlier than the one before of the same device"
            lines.append(f"{than}: if the input is not in order of time, sort it")
    if found.bad_labels:
        example = found.examples[BAD_LABEL]
        lines.append(f"labels that cannot be used: {found.bad_labels:,} ({BAD_LABEL} in {example})")
    if found.readings and found.early == found.processed > 0:
        lines.append("all times are before 1980: whole numbers are read as microseconds since 1970")
    if found.accuracy is not None:
        of = f"{found.correct:,} of {found.labelled:,}"
        lines.append(f"{of} labelled rows are correct, {found.accuracy:.3g}")
    if found.accuracy is not None and len(found.classes) == 2:  # the second one is the rare one
        name, one = next(reversed(found.classes.items()))
        lines.append(f"{name}: recall {_share(one.recall)}, precision {_share(one.precision)}")
    if found.metrics:
        values = (f"{named(name)} {value:.3g}" for name, value in found.metrics.items())
        lines.append(", ".join(values))
    if found.drift is not None:
        lines.append(f"drift: {found.drift.verdict}")
    return [*lines, f"reason: {found.reason}"] if found.reason else lines


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _counted(count: int, one: str) -> str:
    return f"{count:,} {one if count == 1 else one + 's'}"


def _by_reason(counts: dict[str, int]) -> str:
    text = ", ".join(f"{code} {count:,}" for code, count in counts.items())
    return f" ({text})" if text else ""


def nothing_of(found: Manifest) -> str:
    """Return why a job has no output rows, for a person."""
    if found.excluded:
        return f"all {found.excluded:,} are excluded"
    if found.readings:
        return "no segment ends in its readings"
    return "the input has none"


def write_report(job: JobFolder) -> None:
    """Write the report of a job as it is now; raise TidewheelError if it cannot be written."""
    text = report_of(job.specification().id, manifest_of(job))
    try:
        write_atomic(job.report, text.encode())
    except OSError as exc:
        raise TidewheelError(f"the report {job.report} cannot be written: {exc}") from exc


def report_of(identity: str, found: Manifest) -> str:
    """Return a job's report in Markdown: counts, drift, accuracy by class, input."""
    lines = [f"# {found.task}: batch job {identity}", ""]
    lines.append(f"{found.state}: {found.completed:,} of {_counted(found.shards, 'shard')}, "
                 f"{_counted(found.attempts, 'attempt')}. Output: {found.output}")  # fmt: skip
    lines += ["", *(f"- {line}" for line in summary_of(found))]
    if found.drift is None:
        lines += ["", "Drift is not measured: the model has no reference, or there are no answers."]
    else:
        theirs, shown = found.drift.mean_of_distances, found.drift.inputs_and_answers.channels
        lines += ["", "## Drift against the reference of the model", "",
                  f"The mean of distances, as MLRun decides it, is {theirs.value:.3f}: "
                  f"{theirs.status}."]  # fmt: skip
        rows = [
            (f"{one.channel} {one.kind}", f"{one.psi:.3f}", f"{one.threshold:.3f}",
             f"{one.hellinger:.3f}", f"{one.total_variation:.3f}", one.n, "yes" * one.alarm)
            for one in shown[:LISTED]
        ]  # fmt: skip
        lines += _table("Feature|PSI|Threshold|Hellinger|Total variation|Rows|Drift", rows)
    classes = [
        (name, one.labelled, one.answered, _share(one.recall), _share(one.precision))
        for name, one in found.classes.items()
        if one.labelled or one.answered
    ]
    if classes:
        lines += ["", "## Labelled rows by class"]
        lines += _table("Class|Labelled|Answered|Recall|Precision", classes)
    if found.broken:
        broken = [(code, n, found.examples[code]) for code, n in found.broken.items()]
        lines += ["", "## Broken readings", *_table("Reason|Readings|First", broken)]
    files = [(one.name, one.rows, one.bytes, one.crc32c) for one in found.inputs]
    lines += ["", "## Input", *_table("File|Rows|Bytes|CRC-32C", files[:LISTED])]
    more = len(files) - LISTED
    return "\n".join([*lines, f"\nand {more:,} more files" if more > 0 else "", ""])


def _table(head: str, rows: Iterable[Sequence[object]]) -> list[str]:
    def line(cells: Iterable[object]) -> str:
        texts = (f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells)
        return "|" + "|".join(text.replace("|", "\\|") for text in texts) + "|"

    names = head.split("|")
    return ["", line(names), line(["---"] * len(names)), *map(line, rows)]
