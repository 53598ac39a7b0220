"""What a job that scores `events` reads, frozen when it is submitted."""

from streams.batch.history.topic import Broker, frozen, named_partition
from streams.batch.records.documents import Columns, Frozen, Named
from streams.batch.sources.inputs import Wanted, selection_of
from streams.contract.errors import UsageError
from streams.contract.task import Task
from streams.contract.topics import EVENTS, topic_name

TIME = "time"


def topic_inputs(
    task: Task, wanted: Wanted, broker: Broker | None
) -> tuple[list[Named], Columns, Frozen]:
    """Return the partitions of the task's `events`, the columns of its rows and the offsets as they
    are now; raise UsageError if events cannot be scored."""
    if task.upload != "segment":
        raise UsageError(
            f"task {task.name} uploads predictions alone: its events have no segments to score"
        )
    named = {
        "--columns": wanted.columns, "--drop": wanted.drop, "--id": wanted.id,
        "--label-column": wanted.label, "--keep": wanted.keep, "--where": wanted.where,
        "--time": wanted.time, "--device": wanted.device,
    }  # fmt: skip
    if given := next((option for option, value in named.items() if value), None):
        raise UsageError(f"{given}: --input-topic has the columns of events, leave it out")
    if broker is None:
        raise UsageError("--input-topic needs a broker: name it with --kafka")
    topic = topic_name(task.name, EVENTS)
    bounds = frozen(broker, topic)
    files = [named_partition(topic, partition) for partition in bounds]
    dated = Wanted(time=TIME, start=wanted.start, stop=wanted.stop)
    columns = Columns(
        segment=["segment"],
        per_channel=False,
        id="id",
        label="label",
        selection=selection_of("events", files, dated),
    )
    return files, columns, Frozen(topic=topic, ranges=list(bounds.values()))
