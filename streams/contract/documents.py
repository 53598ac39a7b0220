"""The JSON documents on `fleet`, `windows` and `rounds`; `releases` is in decisions.py.

Documents are validated when read. Readers ignore unknown fields, so that old and new processes can
run together.
"""

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from streams.contract.errors import MalformedRecord
from streams.contract.window_metrics import ALL, ALMOST_ALL, BALANCED, ERRORS, Sums, WindowMetric

# Numbers from elsewhere that are reckoned with: no sum of them overflows.
Micros = Annotated[int, Field(ge=-(2**62), le=2**62)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Figure = Annotated[float, Field(allow_inf_nan=False)]


class Document(BaseModel):
    """A frozen JSON document."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    def encode(self) -> bytes:
        return self.model_dump_json().encode()

    @classmethod
    def decode(cls, data: bytes | None) -> Self:
        """Parse a document; raise MalformedRecord with the first invalid field."""
        try:
            return cls.model_validate_json(data or b"")
        except ValidationError as exc:
            first = exc.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "document"
            detail = f"{cls.__name__} {where}: {first['msg']}"[:300]
            raise MalformedRecord("bad-document", detail) from exc


def release_of(model: str) -> str:
    """Return the release of a model name; `<release>.p<number>` is a device's personal model."""
    return model.partition(".p")[0]


RowMetric = Literal["accuracy", "within", "mae", "rmse"]  # what a mean over rows tells


def mean_of(metric: RowMetric, correct: int, error: float, of: int) -> float | None:
    """Return the metric of `of` rows from their counts or sums; None without a row."""
    if not of:
        return None
    if metric in ("accuracy", "within"):
        return correct / of
    return math.sqrt(error / of) if metric == "rmse" else error / of


class ModelScore(Document):
    """One device's answer counts for one release, including its personal models.

    Held-out segments are never trained on; `labelled` answers have a true label. `paired` held-out
    segments were also answered by the device's first version, which was right on
    `paired_base_correct` of them.

    `metric` says how they are measured: accuracy, or for targets within, mae or rmse. The `error`
    fields of the last two are sums of absolute or squared errors beside the counts of answers
    within the tolerance.
    """

    metric: RowMetric = "accuracy"
    answers: Count = 0
    labelled: Count = 0
    correct: Count = 0
    error: Figure = 0.0
    held_out: Count = 0
    held_out_correct: Count = 0
    held_out_error: Figure = 0.0
    paired: Count = 0
    paired_correct: Count = 0
    paired_error: Figure = 0.0
    paired_base_correct: Count = 0
    paired_base_error: Figure = 0.0

    @property
    def of_labelled(self) -> float | None:
        """The metric of all answers with a label; None without one."""
        return mean_of(self.metric, self.correct, self.error, self.labelled)

    @property
    def of_held_out(self) -> float | None:
        return mean_of(self.metric, self.held_out_correct, self.held_out_error, self.held_out)

    @property
    def of_paired(self) -> tuple[float | None, float | None]:
        """The metric on the same segments: of the first version, and of this one."""
        return (
            mean_of(self.metric, self.paired_base_correct, self.paired_base_error, self.paired),
            mean_of(self.metric, self.paired_correct, self.paired_error, self.paired),
        )


class PersonalState(Document):
    """A device's personal model, compared with its base on the device's held-out samples.

    `correct` and `base_correct` count right answers; `serving` says which one answers.
    """

    model: str
    base: str
    held_out: int
    correct: int
    base_correct: int
    serving: bool


class DeviceState(Document):
    """A device's report about itself; on `fleet`, key: the device. It is sent within a second when
    something has changed, and after `heartbeat_s` at the latest.

    node: the Flower node of its last work, None before the first. release: the number of the last
    accepted decision. received_bytes: of artifacts, since its start. late_labels: those that became
    known after their events and are sent by themselves: produced, delivered, dropped, pending.
    """

    device: str
    task: str
    time_us: Micros
    epoch: str
    active: str
    previous: str | None = None
    produced: Count
    delivered: Count
    dropped: dict[str, Count] = {}
    pending: Count
    skipped: dict[str, Count] = {}
    samples: Count = 0
    true_labels: Count = 0
    labels_told: Count = 0
    label_sources: dict[str, Count] = {}
    late_labels: dict[str, Count] = {}
    teacher_labels: Count = 0
    teacher_trust: float = 0.0
    accuracy: dict[str, ModelScore] = {}
    refused: dict[str, str] = {}  # model versions that it does not install again -> reason
    held_back: str | None = None
    personal: PersonalState | None = None
    node: int | None = None
    release: int | None = None
    received_bytes: Count = 0
    heartbeat_s: Figure = 1.0
    phase: str = "running"
    replayed: Figure = 0.0
    passes: Count = 0
    events_per_s: Figure = 0.0
    latency_p50_us: Figure = 0.0
    latency_p99_us: Figure = 0.0
    error: str | None = None


class ModelWindow(Document):
    """One model version's counts in a window; `compared` events have a teacher's answer.

    error, label_error: where the report's metric is an error, the sum over the compared, or the
    labelled events of absolute errors, for rmse of squared ones; means over the targets.
    """

    events: Count
    agreeing: Count
    compared: Count = 0
    labelled: Count = 0
    correct: Count = 0
    teacher_correct: Count = 0
    error: Figure = 0.0
    label_error: Figure = 0.0


class ChannelDrift(Document):
    """Drift of one input channel's mean or spread, or of the answers, from the reference.

    psi is in nats; jensen_shannon at most 0.8326; hellinger, total_variation and kolmogorov_smirnov
    at most 1; wasserstein in the channel's units. The last two are None for classes. `alarm` is set
    where psi exceeds `threshold`, the larger of the effect threshold and the chance level.
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
    """Drift of a device's last windows, summed; `channels` are sorted, the worst first.

    `decided` is False if there are too few segments for an alarm; `share` is the share of channels
    that have drifted.
    """

    windows: int
    segments: int
    decided: bool
    alarm: bool
    worst: str | None
    share: float
    channels: list[ChannelDrift] = []


class ClassAgreement(Document):
    """Events that the reference assigns to one class, and how many the device does too."""

    events: Count
    agreeing: Count


class TargetError(Document):
    """The device's answers minus the teacher's, for one target, in the target's units."""

    events: Count
    mean: Figure
    mean_absolute: Figure
    root_mean_square: Figure


class WindowReport(Document):
    """A revision of a closed window's report; on `windows`, key: the device.

    The counts of a window's revisions add up. `late`: the rows came after the first report.
    `confidence` is the mean of the answers' largest softmax, None for targets. `metric`: what
    windows tell of `Task.metric` (streams.contract.window_metrics). `classes` counts by the class
    of the reference, the teacher or, where none was asked, the true labels; `errors` (for targets)
    compares with the teacher. `drift` covers the device's last windows up to this one, None if the
    teacher's artifact has no reference.
    """

    task: str
    device: str
    window_us: Micros
    end_us: Micros
    revision: Count
    events: Count
    teacher_model: str
    models: dict[str, ModelWindow]
    metric: WindowMetric = "accuracy"
    late: bool = False
    confidence: float | None = None
    classes: dict[str, ClassAgreement] = {}
    errors: dict[str, TargetError] = {}
    drift: DriftReport | None = None

    @property
    def by_release(self) -> dict[str, ModelWindow]:
        """`models` with personal models counted under their releases."""
        found: dict[str, ModelWindow] = {}
        for model, counts in self.models.items():
            before = found.get(release_of(model), ModelWindow(events=0, agreeing=0))
            sums = {name: value + getattr(before, name) for name, value in counts}
            found[release_of(model)] = ModelWindow.model_validate(sums)
        return found

    @property
    def judged(self) -> dict[str, tuple[int, float]]:
        """By release, the events that the reference judges, and those that are right by it, or the
        sum of their errors. Without a teacher (`upload="prediction"`) true labels are it."""
        error = self.metric in ERRORS
        if self.teacher_model:
            return {
                name: (m.compared, m.error if error else m.agreeing)
                for name, m in self.by_release.items()
            }
        return {
            name: (m.labelled, m.label_error if error else m.correct)
            for name, m in self.by_release.items()
        }

    def sums(self, release: str) -> Sums:
        """What the window tells of a release's metric; by class where the metric needs that, and
        then nothing of a window that other releases answered too."""
        judged = self.judged
        events, right = judged.get(release, (0, 0))
        if self.metric != BALANCED:
            return {ALL: (events, right)} if events else {}
        if not events or events < ALMOST_ALL * sum(n for n, _ in judged.values()):
            return {}
        return {name: (c.events, c.agreeing) for name, c in self.classes.items()}


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
    """One step of a federated run, with its reason or metrics; on `rounds`, key: the run.

    resumed_from: the run that this one continues. metric: the task's, of which `metrics` has values
    before and after, on devices and on held-out ones.
    """

    run: str
    kind: RoundKind
    time_us: Micros
    round: int = 0
    rounds: int = 0
    device: str | None = None
    reason: str = ""
    samples: int = 0
    base: str = ""
    model: str | None = None
    resumed_from: str = ""
    metric: str = "accuracy"
    metrics: dict[str, float] = {}
