"""Messages of a federated round between server and device, as Flower records and documents.

    message   "weights" ArrayRecord with the one array BLOCK (streams.contract.payload),
              "work"    ConfigRecord: the fields of Work
    reply     "weights" ArrayRecord with the new weights, empty after "evaluate",
              "metrics" MetricRecord: SAMPLES and the metrics of WorkReply,
              "device"  ConfigRecord: device, task, task_version, base, error ("" for success)

On the device the ClientApp adds `op` and `node` to the Work and passes a WorkRequest to the agent,
which returns a WorkReply. A failure is a reply with its reason: Flower's error replies name no
device.

Metrics of an evaluation are counts of held-out segments. `evaluated` and `correct` are always
present. A comparison with the version that the device serves adds `base_correct` (right with that
version), `gained` (right only with the received weights) and `lost` (right only with the served
version). Counts per class have the prefix `class_prefix(index)`, plus `false` and `base_false`:
segments of other classes that were predicted as this one.
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
    """Return the prefix of one class's metrics: `class-3-` for index 3."""
    return f"class-{index}-"


class Work(Document):
    """The work of one round, the same for every device.

    `base` is the version served at the start of the run; `seed` makes the training repeatable;
    `payload` is the float type of the weights.
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
    """Work for one device: train from, or evaluate, the weights that come with it.

    `node` is the Flower node that delivers the work, None for the device's own training.
    """

    op: Op
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
