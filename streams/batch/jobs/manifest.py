"""The manifest of a job, and whether its sums agree."""

import json
import math
from collections.abc import Iterable
from functools import reduce
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
from streams.contract.errors import MalformedRecord, UsageError
from streams.drift.reference import Reference
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


def manifest_path(folder: JobFolder, specification: Specification) -> Path:
    """Return where the manifest is: beside the output files, or in the job's folder."""
    return (Path(specification.output) if specification.in_files else folder.folder) / MANIFEST


def read_manifest(folder: JobFolder, specification: Specification) -> Manifest:
    """Return the manifest that a job has written; raise UsageError if it has none."""
    path = manifest_path(folder, specification)
    try:
        return Manifest.decode(path.read_bytes())
    except (OSError, MalformedRecord) as exc:
        raise UsageError(f"{path} cannot be read: {exc}") from exc


def write_manifest(folder: JobFolder, specification: Specification, manifest: Manifest) -> None:
    """Write it; objects under a URL get it beside them, too. Raise OSError."""
    data = manifest.model_dump_json(indent=2).encode() + b"\n"
    write_atomic(manifest_path(folder, specification), data)
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
    folder: JobFolder,
    specification: Specification,
    plan: Plan,
    state: State,
    reason: str,
    reference: Reference | None = None,
) -> Manifest:
    """Return what a job has done so far; its drift is against `reference`."""
    done = folder.done(plan, specification).values()
    counts, seconds = counts_of(folder, specification, plan), busy_s(done)
    attempts = [record.attempts for n in range(len(plan.shards)) if (record := folder.record(n))]
    return Manifest(
        state=state,
        reason=reason,
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
        ended_us=max(now_us(), specification.created_us),
        inputs=plan.files,
    )


def manifest_now(folder: JobFolder, *, drift: bool = True) -> Manifest:
    """Return what a job has done, from its folder alone; raise UsageError if there is none."""
    specification, status = folder.specification(), folder.state()
    plan = folder.plan() or Plan(files=[], shards=[])
    reference = reference_of(artifact_of(folder, specification)) if drift else None
    found = manifest_of(folder, specification, plan, status.state, status.reason, reference)
    return found.model_copy(update={"ended_us": max(status.updated_us, found.started_us)})
