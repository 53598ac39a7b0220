"""The JSON documents on `windows`: what the worker reports of a closed window."""

import re
from typing import Annotated

from msgspec import Meta

from streams.contract.documents import Count, Document, Micros
from streams.contract.window_metrics import ALL, ERRORS, Judgement, WindowMetric

JUDGING = 30  # labelled events that show whether a teacher is right more often than a candidate
CONFUSED, OTHER = 12, "other"
OWN = re.compile(r"\.(?:[ap]\d+|k\d+-[^.]+)\Z")  # of a device, behind the name of a release

Change = Annotated[int, Meta(ge=-(2**53), le=2**53)]  # of a count: another label takes one away
Confusion = dict[str, dict[str, Change]]  # true class -> answer -> labelled events


def release_of(model: str) -> str:
    """Return the release of a model name; `<release>.a<number>` is it behind a device's input
    adapter, `<release>.p<number>` a device's own copy, and `<release>.k<version>` an earlier
    version that a device keeps. A producer's names may have dots as well."""
    return OWN.sub("", model)


class ClassAgreement(Document):
    """Events that the teacher assigns to one class, and how many the device does too."""

    events: Count
    agreeing: Count


class ModelWindow(Document):
    """One model version's counts in a report; `compared` events have a teacher's answer.

    error, label_error: where the report's metric is an error, the sum over the compared, or the
    labelled events of absolute errors, for rmse of squared ones; means over the targets. `classes`
    counts the compared events by the teacher's class; `truth` the labelled ones by true class and
    answer, of more than CONFUSED classes by whether the answer is right or OTHER.
    """

    events: Count
    agreeing: Count
    compared: Count = 0
    labelled: Change = 0
    correct: Change = 0
    teacher_correct: Change = 0
    error: float = 0.0
    label_error: float = 0.0
    classes: dict[str, ClassAgreement] = {}
    truth: Confusion = {}

    def __add__(self, other: "ModelWindow") -> "ModelWindow":
        sums = {name: getattr(self, name) + getattr(other, name) for name in NUMBERS}
        classes = dict(self.classes)
        for name, each in other.classes.items():
            before = classes.get(name, ClassAgreement(events=0, agreeing=0))
            classes[name] = ClassAgreement(
                events=before.events + each.events, agreeing=before.agreeing + each.agreeing
            )
        truth: Confusion = {name: dict(answers) for name, answers in self.truth.items()}
        add_confusion(truth, other.truth)
        return ModelWindow(**sums, classes=classes, truth=truth)


NUMBERS = tuple(name for name in ModelWindow.__struct_fields__ if name not in ("classes", "truth"))


def add_confusion(total: Confusion, more: Confusion) -> None:
    """Add `more` to `total`."""
    for label, answers in more.items():
        row = total.setdefault(label, {})
        for answer, count in answers.items():
            row[answer] = row.get(answer, 0) + count


class ChannelDrift(Document):
    """Drift of one input channel's mean or spread, or of the answers, from the reference.

    psi is in nats; hellinger and total_variation are at most 1. `alarm` is set where psi exceeds
    `threshold`, the larger of the effect threshold and the chance level.
    """

    channel: str
    kind: str
    n: Count
    psi: float
    hellinger: float
    total_variation: float
    threshold: float
    alarm: bool


class FeatureHistogram(Document):
    """The segments of a feature by cell: `counts` of the device's last windows, and `reference`.

    Both have len(edges) + 3 cells: below the first edge, between the edges, from the last edge on,
    null, not finite. `edges` have six digits. Where it is not `ordered` the cells between the edges
    are the task's classes.
    """

    channel: str
    kind: str
    ordered: bool = True
    edges: list[float]
    counts: list[Count]
    reference: list[Count]


class DriftReport(Document):
    """Drift of a device's last windows, summed; `channels` are sorted, the worst first.

    `decided` is False if there are too few segments for an alarm; `share` is the share of channels
    that have drifted. `histograms` are those of the worst features.
    """

    windows: Count
    segments: Count
    decided: bool
    alarm: bool
    worst: str | None
    share: float
    channels: list[ChannelDrift] = []
    histograms: list[FeatureHistogram] = []


class WindowReport(Document):
    """A revision of a closed window's report; on `windows`, key: the device.

    The counts of a window's revisions add up. `late`: the rows came after the first report. A
    revision without events has what labels add that came later; its counts may be negative, where a
    label replaces another. `metric`: what windows tell of `Task.metric`
    (streams.contract.window_metrics). `sliding`: of Sliding windows, the sums of `models` over the
    last `length_s` up to this window, as far as reported then. `drift` covers the device's last
    windows up to this one, None if the teacher's artifact has no reference, or without events.
    `store`, `partition`, `commit`: which of a store's commits the report is of
    (streams.fleet.agreement).
    """

    task: str
    device: str
    window_us: Micros
    end_us: Micros
    revision: Count
    events: Count
    teacher_model: str
    models: dict[str, ModelWindow]
    sliding: dict[str, ModelWindow] = {}
    metric: WindowMetric = "accuracy"
    late: bool = False
    store: str = ""
    partition: Count = 0
    commit: Count = 0
    drift: DriftReport | None = None

    @property
    def by_release(self) -> dict[str, ModelWindow]:
        """`models` with personal models counted under their releases."""
        found: dict[str, ModelWindow] = {}
        for model, counts in self.models.items():
            release = release_of(model)
            before = found.get(release)
            found[release] = counts if before is None else before + counts
        return found

    def judgement(self, release: str) -> Judgement:
        """What the report adds to a release's metric."""
        part = self.by_release.get(release)
        return Judgement() if part is None else judgement_of(self.metric, part)


def judgement_of(metric: WindowMetric, part: ModelWindow) -> Judgement:
    """Return what a version's counts add to a metric."""
    if metric in ERRORS or not (part.classes or part.truth):
        error = metric in ERRORS
        taught = part.compared, part.error if error else part.agreeing
        true = part.labelled, part.label_error if error else part.correct
        return Judgement({ALL: taught} if part.compared else {}, {ALL: true} if any(true) else {})
    return Judgement(
        {name: (c.events, c.agreeing) for name, c in part.classes.items() if c.events},
        {name: (sum(said.values()), said.get(name, 0)) for name, said in part.truth.items()},
    )
