"""The JSON documents on `windows`: what the worker reports of a closed window."""

from streams.contract.documents import Count, Document, Figure, Micros, release_of
from streams.contract.window_metrics import ALL, ALMOST_ALL, BALANCED, ERRORS, Sums, WindowMetric

LABELLED = 0.5  # of a window's events: then true labels judge it, not the teacher
JUDGING = 30  # labelled events that show whether a teacher is right more often than a candidate
CONFUSED, OTHER = 12, "other"


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

    psi is in nats; hellinger and total_variation are at most 1. `alarm` is set where psi exceeds
    `threshold`, the larger of the effect threshold and the chance level.
    """

    channel: str
    kind: str
    n: int
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
    edges: list[Figure]
    counts: list[Count]
    reference: list[Count]


class DriftReport(Document):
    """Drift of a device's last windows, summed; `channels` are sorted, the worst first.

    `decided` is False if there are too few segments for an alarm; `share` is the share of channels
    that have drifted. `histograms` are those of the worst features.
    """

    windows: int
    segments: int
    decided: bool
    alarm: bool
    worst: str | None
    share: float
    channels: list[ChannelDrift] = []
    histograms: list[FeatureHistogram] = []


class ClassAgreement(Document):
    """Events that the reference assigns to one class, and how many the device does too."""

    events: Count
    agreeing: Count


class WindowReport(Document):
    """A revision of a closed window's report; on `windows`, key: the device.

    The counts of a window's revisions add up. `late`: the rows came after the first report.
    `metric`: what windows tell of `Task.metric` (streams.contract.window_metrics). `classes` counts
    by the class of the reference: the true labels, `by_labels`, where no teacher was asked or
    LABELLED of the events have one, else the teacher. `truth` counts the labelled events by true
    class and answer; of more than CONFUSED classes by whether the answer is right or OTHER.
    `sliding`: of Sliding windows, the sums of `models` over the last `length_s` up to this window,
    as far as reported then. `drift` covers the device's last windows up to this one, None if the
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
    sliding: dict[str, ModelWindow] = {}
    metric: WindowMetric = "accuracy"
    late: bool = False
    by_labels: bool = False
    classes: dict[str, ClassAgreement] = {}
    truth: dict[str, dict[str, Count]] = {}
    drift: DriftReport | None = None

    @property
    def by_release(self) -> dict[str, ModelWindow]:
        """`models` with personal models counted under their releases."""
        found: dict[str, ModelWindow] = {}
        for model, counts in self.models.items():
            release = release_of(model)
            if (before := found.get(release)) is not None:
                sums = {name: value + getattr(before, name) for name, value in counts}
                counts = ModelWindow.model_validate(sums)
            found[release] = counts
        return found

    @property
    def judged(self) -> dict[str, tuple[int, float]]:
        """By release, the events that the reference judges, and those that are right by it, or the
        sum of their errors."""
        error = self.metric in ERRORS
        if not self.by_labels:
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
