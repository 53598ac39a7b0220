"""Messages of a federated round between server and device, as Flower records and documents.

    message   "work"     ConfigRecord: the fields of Work, and BLOCK: a block of weights
                         (streams.contract.weights.payload), the tensors that travel
                         (streams.contract.task.travels)
    reply     "device"   ConfigRecord: device, task, task_version, base, error ("" for success), and
                         BLOCK with the same tensors, trained; empty after "evaluate"
              "metrics"  MetricRecord: SAMPLES and the metrics of WorkReply
    both      "1", "2"…  ConfigRecord: what of BLOCK is beyond PART_BYTES, in parts of as many

Flower sends, stores and fetches each record by separate requests, 20 ms of the SuperLink each. An
array would be two more, and in one object a long block would not be through a slow line before
Flower gives it up (180 s).

On the device the ClientApp adds `op` and `node` to the Work and passes a WorkRequest to the agent,
which returns a WorkReply. A failure is a reply with its reason: Flower's error replies name no
device.

Metrics of an evaluation are counts of held-out segments. `evaluated` and `correct` are always
present. Where the device has the base, a comparison adds `base_correct` (right with the base),
`gained` (right only with the received weights) and `lost` (right only with the base). Counts per
class have the prefix `class_prefix(index)`, plus `false` and `base_false`: segments of other
classes that were predicted as this one. Where the task's metric is not accuracy, `metric` is its
value with the received weights and `metric_base` with the base; they are absent where it is not
defined for the device's rows.

All metrics of a comparison are there twice: with the prefix `PART` they compare the base with the
weights halfway from it to the received ones, in the payload's precision.

On the device the same documents are headers on Unix sockets. The command line sends AgentRequest to
the agent, which answers AgentReply; the agent sends TrainerJob to its trainer.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta

from streams.contract.documents import Count, DeviceState, Document, EventTime

Op = Literal["train", "evaluate"]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
AtLeastOne = Annotated[int, Meta(ge=1)]

BLOCK, PART_BYTES = "weights", 5 << 20
WRONG_TASK = "wrong-task"  # begins the error of a device that serves another task
SAMPLES = "num-examples"  # Flower's default weight of a reply

PERSONAL = "personal"  # the run of a WorkRequest that the device makes itself
OWN = "own.safetensors"  # the file of the device's local layers


COMPARED = ("evaluated", "correct", "base_correct", "gained", "lost")
CONFUSED = ("base_false", "false")
METRIC, METRIC_BASE = "metric", "metric_base"
PART = "part-"


def class_prefix(index: int) -> str:
    """Return the prefix of one class's metrics: `class-3-` for index 3."""
    return f"class-{index}-"


def with_block(name: str, fields: Mapping[str, Any], block: bytes) -> dict[str, dict[str, Any]]:
    """Return the records that carry the fields of record `name`, and a block if it is not empty."""
    starts = range(0, len(block), PART_BYTES)
    parts = [{BLOCK: block[at : at + PART_BYTES]} for at in starts] or [{}]
    return {name: {**fields, **parts[0]}, **{str(n): parts[n] for n in range(1, len(parts))}}


def block_of(records: Mapping[str, Mapping[str, Any]], name: str) -> bytes | None:
    """Return the block of a message's records, None if they have none; raise TypeError if it is no
    bytes, KeyError without the record."""
    if BLOCK not in records[name]:
        return None
    parts = [records[name][BLOCK]]
    while (record := records.get(str(len(parts)))) is not None:
        parts.append(record[BLOCK])
    return b"".join(parts)


class Work(Document):
    """The work of one round, the same for every device.

    `base` is the version served at the start of the run; `part`: the weights are a part of a model,
    the device takes the others from the base; `seed` makes the training repeatable;
    a training ends after `time_budget_s` (processor time where a device trains for itself), and its
    reply is waited for until `limit_s`;
    `payload` is the float type of the weights; `teacher` is the share of the teacher's answers that
    are right by class, as all devices have reported it, empty if it is not known; `traceparent`
    names the span of the round, "" if there are no traces.
    """

    run: str
    round: Count
    task: str
    task_version: int
    base: str
    part: bool = False
    epochs: AtLeastOne
    batch_size: AtLeastOne
    learning_rate: Positive
    seed: int = 0
    time_budget_s: Positive = 60.0
    limit_s: Positive = 300.0
    payload: Literal["float32", "float16"] = "float32"
    teacher: list[float] = []
    traceparent: str = ""


class WorkRequest(Work):
    """Work for one device: train from, or evaluate, the weights that come with it, or fit an input
    adapter before them.

    `node` is the Flower node that delivers the work, None for the device's own training. Of an
    adapter: whether the sensor is `drifting`, and `inputs`, mean and variance of each channel in
    the reference.
    """

    op: Op | Literal["adapt"]
    drifting: bool = False
    inputs: list[tuple[float, float]] = []
    node: int | None = None


class WorkReply(Document):
    """A device's result; after "train" new weights come with it.

    `samples` is the number trained on or evaluated; `error` is None for success.
    """

    device: str
    samples: int = 0
    base: str = ""
    metrics: dict[str, float] = {}
    error: str | None = None


class Label(Document):
    """The true label of the interval `first_us` to `last_us`, both inclusive.

    `label` is a class index, or one value per target.
    """

    first_us: EventTime
    last_us: EventTime
    label: Annotated[list[float], Meta(min_length=1)]

    def __post_init__(self) -> None:
        if self.last_us < self.first_us:
            raise ValueError("the label's interval ends before it begins")


class AgentRequest(Document):
    """A request from the same machine: report the state, drain at most `drain_s` and stop, store
    true labels, note the Flower `node` that the device's SuperNode has become or the `error` for
    which it has not, or replay at another `speed`."""

    op: Literal["state", "drain", "label", "joined", "pace"]
    node: int | None = None
    error: str | None = None
    speed: NotNegative = 1.0
    labels: list[Label] = []
    drain_s: NotNegative = 10.0


class AgentReply(Document):
    """The agent's answer. `labelled` segments got a label; `error` is None for success."""

    state: DeviceState | None = None
    labelled: int = 0
    error: str | None = None


class TrainerJob(Document):
    """A request from the agent to its trainer, with paths.

    `samples`: the rows to train on. `stop`: training stops once this file exists. `own`: the file
    of local layers. `served`: weights of the request's base, "" if the device lacks it or they
    are not needed.
    """

    device: str
    request: WorkRequest
    samples: str
    stop: str
    own: str = ""
    served: str = ""
