"""How far a job is, and what became of its rows, as JSON documents: The job's folder in
docs/architecture/batch.md."""

from typing import Literal

from pydantic import Field

from streams.batch.records.documents import PlannedFile
from streams.contract.documents import Count, Document, Figure, Micros
from streams.contract.window_report import ChannelDrift, DriftReport

State = Literal[
    "Submitted", "Validating", "Scheduled", "InProgress", "Completed", "PartiallyCompleted",
    "Failed", "Stopping", "Stopped", "Expired",
]  # fmt: skip
OVER = ("Completed", "PartiallyCompleted", "Failed", "Stopped", "Expired")  # states


class ClassCounts(Document):
    """Of one class: rows with that label, those of them that are right, and rows so answered."""

    labelled: Count = 0
    correct: Count = 0
    answered: Count = 0


class Observed(Document):
    """Rows with answers, counted in the cells of the artifact's reference, labels in those of the
    answers, and by class."""

    cells: list[Count] = []
    label_cells: list[Count] = []
    classes: dict[str, ClassCounts] = {}

    def plus(self, other: "Observed") -> "Observed":
        names = list(dict.fromkeys([*self.classes, *other.classes]))
        none = ClassCounts()
        pairs = [(self.classes.get(n, none), other.classes.get(n, none)) for n in names]
        return Observed(
            cells=_summed(self.cells, other.cells),
            label_cells=_summed(self.label_cells, other.label_cells),
            classes={
                name: ClassCounts(
                    labelled=a.labelled + b.labelled,
                    correct=a.correct + b.correct,
                    answered=a.answered + b.answered,
                )
                for name, (a, b) in zip(names, pairs, strict=True)
            },
        )


def _summed(one: list[int], other: list[int]) -> list[int]:
    if not one or not other:
        return one or other
    return [a + b for a, b in zip(one, other, strict=True)]


class MeanOfDistances(Document):
    """MLRun's verdict."""

    value: Figure
    status: Literal["none", "potential", "detected"]


class JobDrift(Document):
    """Drift of a job's rows against the artifact's reference; labels against its answers."""

    inputs_and_answers: DriftReport
    labels: list[ChannelDrift] = []
    mean_of_distances: MeanOfDistances


class Counts(Document):
    """What became of rows; `correct` are of the `labelled`. Excluded rows have no output.

    `readings` are those that were cut into the rows, and `broken` those of them that break a
    segment, by reason.
    """

    readings: Count = 0
    broken: dict[str, Count] = {}
    excluded: Count = 0
    succeeded: Count = 0
    errors: dict[str, Count] = {}
    labelled: Count = 0
    correct: Count = 0
    observed: Observed = Observed()

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    @property
    def processed(self) -> int:
        return self.succeeded + self.failed

    @property
    def read(self) -> int:
        """All rows of the input that were looked at."""
        return self.processed + self.excluded

    def plus(self, other: "Counts") -> "Counts":
        return Counts(
            readings=self.readings + other.readings,
            broken=_added(self.broken, other.broken),
            excluded=self.excluded + other.excluded,
            succeeded=self.succeeded + other.succeeded,
            errors=_added(self.errors, other.errors),
            labelled=self.labelled + other.labelled,
            correct=self.correct + other.correct,
            observed=self.observed.plus(other.observed),
        )


def _added(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    keys = sorted({*one, *other})
    return {key: one.get(key, 0) + other.get(key, 0) for key in keys}


class ShardRecord(Document):
    """shards/<number>.json; `bytes` are those of the output file. A Scored shard is still to be
    loaded into its database or topic. `generation` counts the results that replace earlier ones.
    It took `seconds`, until `ended_us`.
    """

    state: Literal["InProgress", "Scored", "Completed"]
    attempts: int = Field(ge=1)
    generation: int = Field(default=1, ge=1)
    counts: Counts = Counts()
    seconds: Figure = 0.0
    ended_us: Micros = 0
    bytes: Count = 0


class JobState(Document):
    """state.json; passing: what the job failed of may pass."""

    state: State
    reason: str = ""
    passing: bool = False
    updated_us: Micros


class Manifest(Document):
    """_manifest.json, beside the output files."""

    format: int = 1
    state: State
    reason: str = ""
    task: str
    task_version: int
    model: str
    digest: str
    job: str
    output: str
    shards: Count
    completed: Count
    attempts: Count
    readings: Count
    broken: dict[str, Count]
    total: Count
    excluded: Count
    processed: Count
    succeeded: Count
    errors: dict[str, Count]
    labelled: Count
    correct: Count
    classes: dict[str, ClassCounts] = {}
    drift: JobDrift | None = None
    seconds: Figure
    rows_per_s: Figure
    started_us: Micros
    ended_us: Micros
    inputs: list[PlannedFile]
