"""What a federated round carries between server and device, as Flower records and as documents.

    message   "weights" ArrayRecord with the one array BLOCK (streams.contract.payload),
              "work"    ConfigRecord: the fields of Work
    reply     "weights" ArrayRecord with the new weights, empty after "evaluate",
              "metrics" MetricRecord: SAMPLES and the metrics of WorkReply,
              "device"  ConfigRecord: device, task, task_version, base, error ("" for success)

On the device the ClientApp adds `op` and `node` to the Work and passes a WorkRequest to the agent,
which returns a WorkReply. A failure is a reply with its reason: Flower's error replies name no
device.

Metrics of an evaluation are whole numbers of held-out segments. `evaluated` and `correct` are
always there. Beside the version that the device serves there are also `base_correct` (right by
that version), `gained` (right only by the received weights) and `lost` (right only by the served
version). The same of each class has the prefix `class_prefix(index)`, with `false` and
`base_false`: segments of other classes that were taken for this one.
"""

from typing import Literal

from pydantic import Field

from streams.contract.documents import Document

Op = Literal["train", "evaluate"]

BLOCK = "tidewheel.payload"  # the name and the serialization type of the one array in "weights"
SAMPLES = "num-examples"  # Flower's default weight of a reply

COMPARED = ("evaluated", "correct", "base_correct", "gained", "lost")
CONFUSED = ("base_false", "false")


def class_prefix(index: int) -> str:
    """The prefix of one class's metrics: `class-3-` for index 3."""
    return f"class-{index}-"


class Work(Document):
    """One round's work, the same for every device.

    `base` is the version served when the run started, `seed` makes the training repeatable,
    `payload` is the type of floats in the weights.
    """

    run: str
    round: int = Field(ge=0)
    task: str
    task_version: int
    base: str
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    seed: int = 0
    time_budget_s: float = Field(default=60.0, gt=0)
    payload: Literal["float32", "float16"] = "float32"


class WorkRequest(Work):
    """Work for one device: train from, or evaluate, the weights that come with it. `node` is the
    Flower node that hands the work over, None for the device's own training."""

    op: Op
    node: int | None = None


class WorkReply(Document):
    """What the device did. After "train" new weights come with it.

    `samples` were trained on, or evaluated; `error` is None for success.
    """

    device: str
    samples: int = 0
    base: str = ""
    metrics: dict[str, float] = {}
    error: str | None = None
