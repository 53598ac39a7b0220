"""JSON headers on a device's Unix sockets, between the processes of the device.

The command line sends AgentRequest to the agent, which answers AgentReply. The ClientApp sends work
to the agent (streams.contract.work), the agent sends TrainerJob to the trainer.
"""

from typing import Literal

from pydantic import Field

from streams.contract.documents import DeviceState, Document
from streams.contract.work import WorkRequest

PERSONAL = "personal"  # the run of a WorkRequest that the device makes itself
OWN = "own.safetensors"  # the file of the device's local layers


class Label(Document):
    """The true label of the interval `first_us` to `last_us`, both inclusive.

    `label` is a class index, or one value per target.
    """

    first_us: int = Field(ge=0)
    last_us: int = Field(ge=0)
    label: list[float] = Field(min_length=1)


class AgentRequest(Document):
    """A request from the same machine: report the state, drain at most `drain_s` and stop, or
    store true labels."""

    op: Literal["state", "drain", "label"]
    labels: list[Label] = []
    drain_s: float = Field(default=10.0, ge=0)


class AgentReply(Document):
    """The agent's answer. `labelled` segments got a label; `error` is None for success."""

    state: DeviceState | None = None
    labelled: int = 0
    error: str | None = None


class TrainerJob(Document):
    """A request from the agent to its trainer, with paths.

    `samples`: the device's training rows. `stop`: training stops once this file exists. `own`: the
    file of local layers. `served`: weights of the request's base, "" if the device does not serve
    it.
    """

    device: str
    request: WorkRequest
    samples: str
    stop: str
    own: str = ""
    served: str = ""
