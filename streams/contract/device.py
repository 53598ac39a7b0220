"""What the processes of one device say to each other: JSON headers on its Unix sockets.

The command line asks the agent (AgentRequest, AgentReply), the ClientApp and the agent hand work to
the trainer (streams.contract.work, TrainerJob).
"""

from typing import Literal

from pydantic import Field

from streams.contract.documents import DeviceState, Document
from streams.contract.work import WorkRequest

PERSONAL = "personal"  # the run of a request of the device's own
OWN = "own.safetensors"  # the file of tensors that the device keeps for itself


class Label(Document):
    """The truth of what the device saw from `first_us` to `last_us`, both included: a class index,
    or one value per target."""

    first_us: int = Field(ge=0)
    last_us: int = Field(ge=0)
    label: list[float] = Field(min_length=1)


class AgentRequest(Document):
    """From its own machine: what the agent is doing; that it drain for at most `drain_s` and end;
    true labels."""

    op: Literal["state", "drain", "label"]
    labels: list[Label] = []
    drain_s: float = Field(default=10.0, ge=0)


class AgentReply(Document):
    """`labelled`: how many of the device's segments got a label. `error` is None when all went
    well."""

    state: DeviceState | None = None
    labelled: int = 0
    error: str | None = None


class TrainerJob(Document):
    """From the agent to its trainer: a request with where the device's rows are, which file, once
    it exists, stops the training, and where the tensors are kept that are the device's own.
    served: the file of the weights of the request's base, "" where the device does not serve it."""

    device: str
    request: WorkRequest
    samples: str
    stop: str
    own: str = ""
    served: str = ""
