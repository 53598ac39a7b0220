"""Step 2 of a job: its input hashed and cut into shards."""

from collections.abc import Callable, Sequence
from pathlib import Path

from streams.batch.history.cutting import SHARD_EVENTS, plan_topic
from streams.batch.history.topic import Broker, TopicSources
from streams.batch.jobs.job_folder import JobFolder
from streams.batch.recordings.carry import plan_readings
from streams.batch.records.documents import Plan, Specification
from streams.batch.sources.plan import Cutter, Sources
from streams.batch.windows.around import plan_windows
from streams.batch.windows.shard_rows import ShardRows
from streams.contract.task import Task


def likely_rows(specification: Specification) -> int:
    """Return about how many rows the files of a job have, by their sizes: as many as fit with four
    bytes a number. Files behind URLs and topics count as none."""
    shape = specification.task
    sizes = [Path(file.path).stat().st_size for file in specification.inputs
             if Path(file.path).is_file()]  # fmt: skip
    return sum(sizes) // (4 * len(shape.channels) * shape.samples)


def make_plan(
    folder: JobFolder,
    specification: Specification,
    task: Task,
    cutter: Cutter,
    check: Callable[[], None],
    broker: Broker | None = None,
) -> Plan:
    """Return the plan of a job; `check` is called between two parts of the work."""
    if specification.topic is not None:
        plan = plan_topic(
            task, specification.topic, specification.inputs, specification.columns.selection,
            broker, check, min(SHARD_EVENTS, cutter.shard_rows),
        )  # fmt: skip
    else:
        plan = cutter.plan(specification.inputs)
    if specification.rows == "readings":
        plan = plan_readings(
            plan, task, specification.input_format, specification.columns, folder.folder, check,
            cutter.line_bytes,
        )  # fmt: skip
    if specification.windowed:
        reading = ShardRows(folder.folder, specification, task, cutter.line_bytes, broker)
        unplaced = plan
        plan = plan_windows(plan, lambda number: reading.keys(unplaced, number))
    return plan


def sources_of(
    specification: Specification,
    plan: Plan,
    broker: Broker | None = None,
    missing: Sequence[int] = (),
) -> Sources:
    """Return the input of a job as it is now; `missing` are the shards that are not completed."""
    if specification.topic is None:
        return Sources(plan)
    return TopicSources(plan, broker=broker, missing=[plan.shards[n] for n in missing])
