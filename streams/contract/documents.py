"""The JSON documents on `fleet` and `rounds`; those on `windows` are in window_report.py, those on
`releases` in decisions.py. All are validated when read; unknown fields are ignored, so that old and
new processes can run together.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, dataclass_transform

import msgspec
import numpy as np
from msgspec import Meta

from streams.contract.errors import MalformedRecord
from streams.contract.window_metrics import RowMetric

T = TypeVar("T")
END = r"$(?!\n)"  # of a text: "$" alone is also before a last line break

# Numbers from elsewhere that are reckoned with: no sum of them overflows.
Micros = Annotated[int, Meta(ge=-(2**62), le=2**62)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
MISSED = 3  # heartbeats, before a device counts as silent
LATEST_US = 2**55  # of an event, up to the year 3100
YEAR_1980_US = 315_532_800_000_000  # event times before it are likely seconds or milliseconds
EventTime = Annotated[int, Meta(ge=0, le=LATEST_US)]
Share = Annotated[float, Meta(ge=0, le=1)]
Digest = Annotated[str, Meta(pattern=rf"^[0-9a-f]{{64}}{END}")]
Signature = Annotated[str, Meta(pattern=rf"^[0-9a-f]{{128}}{END}")]
SignedText = Annotated[str, Meta(max_length=1 << 20)]


class _Documents(msgspec.StructMeta):
    """Fields are given by name and cannot be set, also those of subclasses."""

    def __new__(cls, *made: Any, **config: Any) -> Any:
        return super().__new__(cls, *made, **{"kw_only": True, "frozen": True, **config})


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(msgspec.field,))
class Document(msgspec.Struct, metaclass=_Documents, frozen=True):
    """A frozen JSON document. Types and bounds are checked where one is read or made of fields, not
    where our code makes one. JSON has no infinite number and no NaN: they are written as null."""

    def encode(self) -> bytes:
        return encoded(self)

    @classmethod
    def decode(cls, data: bytes | None) -> Self:
        """Parse a document; raise MalformedRecord with the first invalid field."""
        try:
            return decoded(data or b"", cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise MalformedRecord("bad-document", f"{cls.__name__} {problem(exc)}"[:300]) from exc

    @classmethod
    def of_fields(cls, fields: Mapping[str, Any]) -> Self:
        """Make one of values as `fields` returns them; raise MalformedRecord likewise."""
        try:
            return msgspec.convert(fields, cls, dec_hook=_path)
        except msgspec.ValidationError as exc:
            raise MalformedRecord("bad-document", f"{cls.__name__} {problem(exc)}"[:300]) from exc

    def fields(self) -> dict[str, Any]:
        """Return the fields by name, documents in them as dictionaries too."""
        found: dict[str, Any] = msgspec.to_builtins(self, enc_hook=_plain)
        return found

    def replace(self, **changes: Any) -> Self:
        """Return the document with other values of these fields, unchecked."""
        return msgspec.structs.replace(self, **changes)


def encoded(value: Any, indent: int = 0) -> bytes:
    """Return JSON of documents, dataclasses, containers, times and paths."""
    data = msgspec.json.encode(value, enc_hook=_plain)
    return msgspec.json.format(data, indent=indent) if indent else data


def signed_text(document: Document) -> str:
    """Return the JSON that is signed: sorted, and without figures that are not finite."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {n: v for n, v in value.items() if not isinstance(v, float) or math.isfinite(v)}
        return value

    fields = {name: finite(value) for name, value in document.fields().items()}
    return msgspec.json.encode(fields, order="sorted").decode()


def decoded(data: bytes, kind: type[T]) -> T:
    """Return a document or a dataclass from its JSON; raise msgspec.DecodeError."""
    return msgspec.json.decode(data, type=kind, dec_hook=_path)


def _plain(value: Any) -> Any:
    """Return what msgspec does not know as what it does: a path or a channel (`Category`) as its
    text, a number of numpy's as Python's."""
    if isinstance(value, Path | str):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    raise NotImplementedError(f"{type(value).__name__} is not a type of documents")


def _path(kind: type, value: str) -> Any:
    if kind is not Path:
        raise NotImplementedError(kind)
    return Path(value)


def problem(exc: Exception) -> str:
    """Return what is wrong with which field, as `settings.rounds: Expected `int`, got `str``."""
    what, _, where = str(exc).partition(" - at `$")
    return f"{where.strip('`.') or 'document'}: {what}"


def model_number(model: str) -> int:
    """The number in a version's name, `3-1f2e3d4c`; -1 where there is none."""
    head = model.partition("-")[0]
    return int(head) if head.isdigit() else -1


def mean_of(metric: RowMetric, correct: int, error: float, of: int) -> float | None:
    """Return the metric of `of` rows from their counts or sums; None without a row."""
    if not of:
        return None
    if metric in ("accuracy", "within"):
        return correct / of
    return math.sqrt(error / of) if metric == "rmse" else error / of


class ModelScore(Document):
    """One device's answer counts for one release, including its personal models.

    Held-out segments are never trained on, and are a sample where there are very many; `labelled`
    answers have a true label. `paired` held-out segments were also answered by the device's first
    version, which was right on `paired_base_correct` of them.

    `metric` says how they are measured: accuracy, or for targets within, mae or rmse. The `error`
    fields of the last two are sums of absolute or squared errors beside the counts of answers
    within the tolerance.
    """

    metric: RowMetric = "accuracy"
    answers: Count = 0
    labelled: Count = 0
    correct: Count = 0
    error: float = 0.0
    held_out: Count = 0
    held_out_correct: Count = 0
    held_out_error: float = 0.0
    paired: Count = 0
    paired_correct: Count = 0
    paired_error: float = 0.0
    paired_base_correct: Count = 0
    paired_base_error: float = 0.0

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


Origin = Literal["previous", "adapter", "copy"]


class ChallengerState(Document):
    """Other weights for the served version `base`, or an adapter of its input, and whether they
    answer in its place.

    model: the name under which they answer. loss, base_loss: means of the challenger and of the
    served version on the same `segments` of the device: the share of wrong answers, the Brier
    distance, or the mean error. compared_with: that version, or an earlier one. made_us: what was
    labelled later was not in their training. drift_us: the event time of the device's last drift
    when an adapter was fitted: it ends with the next one.
    """

    origin: Origin
    model: str
    base: str
    segments: Count = 0
    loss: float = 0.0
    base_loss: float = 0.0
    compared_with: str = ""
    answers: bool = False
    made_us: Micros
    since_us: Micros
    drift_us: Micros = 0

    @property
    def text(self) -> str:
        """What it is, for a person."""
        if self.origin == "previous":
            model = self.model.rpartition(".k")[2]
            what = f"keeps {model}" if self.answers else f"{model} does not answer"
        else:
            name = "input adapter" if self.origin == "adapter" else "own copy"
            what = f"{name} {self.model} {'answers' if self.answers else 'does not answer'}"
        if not self.segments:
            by_inputs = self.origin == "adapter"
            return f"{what}: {'without labels, by its inputs' if by_inputs else 'not compared yet'}"
        earlier = f" with {self.compared_with}" if self.compared_with not in ("", self.base) else ""
        figures = f"error {self.loss:.2f} against {self.base_loss:.2f} on {self.segments} segments"
        return f"{what}: {figures}{earlier}"


class DeviceState(Document):
    """A device's report about itself; on `fleet`, key: the device. It is sent within a second when
    something has changed, and after `heartbeat_s` at the latest.

    node: the Flower node that it is now, None while no run has invited it. run: the run that it
    takes part in. working: it works for a round. last_run_us: when it was last invited to one.
    metered: its line costs by the byte. unable: why it cannot take part in runs.
    refused_invitations: by reason. release: the number of the last accepted decision.
    received_bytes: of artifacts, since its start. late_labels: those that became
    known after their events and are sent by themselves: produced, delivered, dropped, pending.
    challenger: what stands against the served version, or answers in its place.
    teacher_record: of events with a true label and a teacher's, by the class that the teacher
    answered (0 for targets): how many, and of how many it was right.
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
    irregular: dict[str, Count] = {}
    samples: Count = 0
    true_labels: Count = 0
    labels_told: Count = 0
    label_sources: dict[str, Count] = {}
    late_labels: dict[str, Count] = {}
    teacher_labels: Count = 0
    teacher_record: dict[Count, tuple[Count, Count]] = {}
    accuracy: dict[str, ModelScore] = {}
    refused: dict[str, str] = {}  # model versions that it does not install again -> reason
    held_back: str | None = None
    challenger: ChallengerState | None = None
    node: int | None = None
    run: str | None = None
    last_run_us: Micros | None = None
    metered: bool = False
    working: bool = False
    unable: str | None = None
    refused_invitations: dict[str, Count] = {}
    release: Count | None = None
    received_bytes: Count = 0
    heartbeat_s: float = 1.0
    phase: str = "running"
    passes: Count = 0
    events_per_s: float = 0.0
    latency_p50_us: float = 0.0
    latency_p99_us: float = 0.0
    error: str | None = None

    def __post_init__(self) -> None:
        if self.node is not None and not 0 <= self.node < 2**64:
            raise ValueError("node is not an unsigned number of 64 bits")

    @property
    def missed_after_s(self) -> float:
        """After so long without a word it has missed MISSED heartbeats."""
        return MISSED * self.heartbeat_s


RoundKind = Literal[
    "asked",
    "postponed",
    "requested",
    "resumed",
    "invited",
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
    round: Count = 0
    rounds: Count = 0
    device: str | None = None
    reason: str = ""
    samples: Count = 0
    base: str = ""
    model: str | None = None
    resumed_from: str = ""
    metric: str = "accuracy"
    metrics: dict[str, float] = {}
