"""The small JSON documents: fleet, windows and rounds; releases are in decisions.py.

Each is validated when it is read; a reader ignores fields that it does not know, so that an older
process survives a newer one.
"""

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from streams.contract.errors import MalformedRecord


class Document(BaseModel):
    """A frozen JSON document."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    def encode(self) -> bytes:
        return self.model_dump_json().encode()

    @classmethod
    def decode(cls, data: bytes | None) -> Self:
        """Parse; MalformedRecord names the first field that is wrong."""
        try:
            return cls.model_validate_json(data or b"")
        except ValidationError as exc:
            first = exc.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "document"
            detail = f"{cls.__name__} {where}: {first['msg']}"[:300]
            raise MalformedRecord("bad-document", detail) from exc


def release_of(model: str) -> str:
    """The release behind the name that answers bear: a device's own copy of one is
    `<release>.p<number>`."""
    return model.partition(".p")[0]


class ModelScore(Document):
    """What one device counted of one release's answers, those of its own copies among them: all,
    and on held-out segments only.

    The held-out segments are never trained on; `labelled` ones have a known truth.
    """

    answers: int = 0
    labelled: int = 0
    correct: int = 0
    held_out: int = 0
    held_out_correct: int = 0


class PersonalState(Document):
    """A device's own copy of the version that it serves: how many of its held-out samples each of
    them answers correctly, and whether the copy answers."""

    model: str
    base: str
    held_out: int
    correct: int
    base_correct: int
    serving: bool


class DeviceState(Document):
    """On `fleet`, key: the device. What a device says of itself, about once a second.

    node: the Flower node that last handed it work, None before the first. release: the number of
    the last decision that it has accepted. received_bytes: of artifacts since its start.
    """

    device: str
    task: str
    time_us: int
    epoch: str
    active: str
    previous: str | None = None
    produced: int
    delivered: int
    dropped: dict[str, int] = {}
    pending: int
    skipped: dict[str, int] = {}
    samples: int = 0
    true_labels: int = 0
    labels_told: int = 0
    label_sources: dict[str, int] = {}
    teacher_labels: int = 0
    teacher_trust: float = 0.0
    accuracy: dict[str, ModelScore] = {}
    refused: dict[str, str] = {}  # model versions that are not installed again, and why
    held_back: str | None = None
    personal: PersonalState | None = None
    node: int | None = None
    release: int | None = None
    received_bytes: int = 0
    phase: str = "running"
    replayed: float = 0.0
    passes: int = 0
    events_per_s: float = 0.0
    latency_p50_us: float = 0.0
    latency_p99_us: float = 0.0
    error: str | None = None


class ModelWindow(Document):
    """One model version's share of a window; `compared` events have a teacher's answer."""

    events: int
    agreeing: int
    compared: int = 0
    labelled: int = 0
    correct: int = 0
    teacher_correct: int = 0


class ChannelDrift(Document):
    """One input channel's mean or spread, or the answers, against the frozen reference.

    psi, in nats; jensen_shannon up to 0.8326; hellinger, total_variation and kolmogorov_smirnov up
    to 1; wasserstein in the channel's own units. The last two are None for classes. It alarms where
    psi is above `threshold`, which is above both the effect threshold and chance.
    """

    channel: str
    kind: str
    n: int
    psi: float
    jensen_shannon: float
    hellinger: float
    total_variation: float
    kolmogorov_smirnov: float | None = None
    wasserstein: float | None = None
    threshold: float
    alarm: bool


class DriftReport(Document):
    """A device's last windows, summed, against the reference; `channels` are the worst first.

    `decided` is False where there are too few segments for any alarm; `share` is that of the
    channels that have drifted.
    """

    windows: int
    segments: int
    decided: bool
    alarm: bool
    worst: str | None
    share: float
    channels: list[ChannelDrift] = []


class ClassAgreement(Document):
    """Events that the teacher puts into one class, and those of them where the device agrees."""

    events: int
    agreeing: int


class TargetError(Document):
    """The device's answers less the teacher's, for one target, in the target's own units."""

    events: int
    mean: float
    mean_absolute: float
    root_mean_square: float


class WindowReport(Document):
    """On `windows`, key: the device. One report of one closed window; the counts of its revisions
    sum.

    `late` is a revision that rows make which came after the window's first report. `confidence` is
    the mean of the answers' largest softmax, None for targets. `classes` and `errors` compare with
    the teacher: the one for classes that it gave, the other for targets. `drift` is that of the
    device's last windows up to this one, None where the teacher's artifact has no reference.
    """

    task: str
    device: str
    window_us: int
    end_us: int
    revision: int
    events: int
    teacher_model: str
    models: dict[str, ModelWindow]
    late: bool = False
    confidence: float | None = None
    classes: dict[str, ClassAgreement] = {}
    errors: dict[str, TargetError] = {}
    drift: DriftReport | None = None

    @property
    def by_release(self) -> dict[str, ModelWindow]:
        """`models` with devices' own copies counted as the releases that they copy."""
        found: dict[str, ModelWindow] = {}
        for model, counts in self.models.items():
            before = found.get(release_of(model), ModelWindow(events=0, agreeing=0))
            sums = {name: value + getattr(before, name) for name, value in counts}
            found[release_of(model)] = ModelWindow.model_validate(sums)
        return found

    @property
    def agreement(self) -> float:
        """The share of answers that agree with the teacher; NaN where it scored none of them."""
        compared = sum(m.compared for m in self.models.values())
        return sum(m.agreeing for m in self.models.values()) / compared if compared else math.nan


RoundKind = Literal[
    "asked",
    "requested",
    "resumed",
    "started",
    "admitted",
    "refused",
    "failed",
    "aggregated",
    "evaluated",
    "promoted",
    "rejected",
    "finished",
]


class RoundEvent(Document):
    """On `rounds`, key: the run. One step of a federated run, with the reason or the figures.

    resumed_from: the run that this one goes on with.
    """

    run: str
    kind: RoundKind
    time_us: int
    round: int = 0
    rounds: int = 0
    device: str | None = None
    reason: str = ""
    samples: int = 0
    base: str = ""
    model: str | None = None
    resumed_from: str = ""
    metrics: dict[str, float] = {}
