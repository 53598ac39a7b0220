"""How a job's input is cut, how far the job is, and what became of its rows, as JSON documents:
The job's folder in docs/architecture/batch.md."""

from typing import Any, Literal, Self

from streams.batch.specification import Named
from streams.contract.documents import Count, Document, Micros
from streams.contract.window_report import DriftReport

State = Literal[
    "Submitted", "Validating", "Scheduled", "InProgress", "Completed", "PartiallyCompleted",
    "Failed", "Stopped", "Expired",
]  # fmt: skip
OVER = ("Completed", "PartiallyCompleted", "Failed", "Stopped", "Expired")  # states
BEGINNING = ("gap", "backwards", "out-of-order")  # readings that are used, in the next segment


class PlannedFile(Named):
    """An input file as it was hashed; `modified` is what changes with the content: times of
    changes in nanoseconds and the inode, or an ETag."""

    crc32c: str  # hex; "" until it is known
    bytes: Count
    modified: str
    rows: Count


class Shard(Document):
    """Rows of one file: row groups `start` to `stop` of Parquet, bytes of CSV and JSON Lines.

    Where the rows are readings, `rows` are the segments that end in the shard, and `first_row` is
    that of its first reading. Where a teacher answers, `around` are the first and the last shard
    that have rows of its windows.
    """

    file: Count
    start: Count
    stop: Count
    first_row: Count
    rows: Count
    readings: Count = 0
    around: tuple[Count, Count] | None = None


class Plan(Document):
    """plan.json: the input as it was hashed and cut."""

    files: list[PlannedFile]
    shards: list[Shard]

    @property
    def summed(self) -> bool:
        """Whether all files are hashed; no shard is done before."""
        return all(file.crc32c for file in self.files)

    @property
    def total(self) -> int:
        return sum(file.rows for file in self.files)

    @property
    def readings(self) -> int:
        """How many readings were cut into the rows; 0 where rows are segments."""
        return sum(shard.readings for shard in self.shards)


class Summed(Document):
    """Counts that are added field by field, and key by key."""

    def plus(self, other: Self) -> Self:
        fields = self.__struct_fields__
        return type(self)(**{n: _sum(getattr(self, n), getattr(other, n)) for n in fields})


def _sum(one: Any, other: Any) -> Any:
    if isinstance(one, Summed):
        return one.plus(other)
    if isinstance(one, dict):
        both = {key: _sum(one[key], other[key]) for key in one.keys() & other.keys()}
        found = {**one, **other, **both}
        kept = all(isinstance(each, Summed) for each in found.values())  # classes, in their order
        return found if kept else {key: found[key] for key in sorted(found)}
    if isinstance(one, str):  # an example: the first one
        return one
    if isinstance(one, list):  # empty: nothing was counted
        return [a + b for a, b in zip(one, other, strict=True)] if one and other else one or other
    return one + other


class ClassCounts(Summed):
    """Of one class: rows with that label, those of them that are right, and labelled rows with that
    answer, which for `top_k` has k classes."""

    labelled: Count = 0
    correct: Count = 0
    answered: Count = 0

    @property
    def recall(self) -> float | None:
        """The share of the class's rows that is found; None without one."""
        return self.correct / self.labelled if self.labelled else None

    @property
    def precision(self) -> float | None:
        """The share of the rows so answered that are of the class; None without one."""
        return self.correct / self.answered if self.answered else None


class Observed(Summed):
    """Rows with answers, counted in the cells of the artifact's reference; and those with a label:
    by class; where there are two, those of the second one and the others by score; of targets the
    sums (targets,) of errors, labels and their squares."""

    cells: list[Count] = []
    classes: dict[str, ClassCounts] = {}
    rare: list[Count] = []
    others: list[Count] = []
    sums: dict[str, list[float]] = {}


class MeanOfDistances(Document):
    """MLRun's verdict."""

    value: float
    status: Literal["none", "potential", "detected"]


class JobDrift(Document):
    """Drift of a job's rows against the artifact's reference."""

    inputs_and_answers: DriftReport
    mean_of_distances: MeanOfDistances

    @property
    def verdict(self) -> str:
        found = self.inputs_and_answers
        if not found.decided:
            return f"undecided, too few segments: {found.segments:,}"
        if not found.alarm:
            return "none"
        return f"in {found.share:.0%} of the channels, most in {found.worst}"


class RowCounts(Summed):
    """What became of rows; `correct` are of the `labelled`. Excluded rows have no output.

    `readings` are those that were cut into the rows, and `broken` those of them that break a
    segment, by reason; `bad_labels` have a label that cannot be used, and are used without it.
    `examples` say of each reason, `bad-label` too, which reading is the first, as `file:row`, and
    what is wrong with it. `early` rows are of readings before 1980.
    """

    readings: Count = 0
    broken: dict[str, Count] = {}
    bad_labels: Count = 0
    examples: dict[str, str] = {}
    early: Count = 0
    excluded: Count = 0
    succeeded: Count = 0
    errors: dict[str, Count] = {}
    labelled: Count = 0
    correct: Count = 0

    @property
    def faults(self) -> dict[str, int]:
        """The broken readings without those after a gap or a step back, by reason: these are used,
        in the next segment."""
        return {code: count for code, count in self.broken.items() if code not in BEGINNING}

    @property
    def faulty(self) -> int:
        return sum(self.faults.values())


class Counts(RowCounts):
    """Rows of a shard or a job, and what they look like."""

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


class ShardRecord(Document):
    """shards/<number>.json; `bytes` are those of the output file. A Scored shard is still to be
    loaded into its database, which has been begun if it is `loaded`: its rows may be there.
    It took `seconds`, until `ended_us`.
    """

    state: Literal["InProgress", "Scored", "Completed"]
    attempts: Count
    loaded: bool = False
    counts: Counts = Counts()
    seconds: float = 0.0
    ended_us: Micros = 0
    bytes: Count = 0

    def begun_again(self, attempts: int) -> Self:
        """Return what is known of a shard that is scored anew."""
        return type(self)(state="InProgress", attempts=attempts, loaded=self.loaded)


class JobState(Document):
    """state.json; passing: what the job failed of may pass."""

    state: State
    reason: str = ""
    passing: bool = False
    updated_us: Micros


class Manifest(RowCounts):
    """The result of a batch job, as `_manifest.json` beside its output.

    `state` is Completed, PartiallyCompleted, Stopped or Failed, with a `reason`. Rows that were
    `processed` have `succeeded`, or are in `errors` by code; `excluded` ones have no output.
    `metrics` are those of the labelled rows, by the names of `Task.metric`.

    >>> from tidewheel import Manifest
    >>> Manifest.decode(b'{"state": "Completed"}')
    Traceback (most recent call last):
    streams.contract.errors.MalformedRecord: bad-document: ...
    """

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
    total: Count
    processed: Count
    classes: dict[str, ClassCounts] = {}
    metrics: dict[str, float] = {}
    drift: JobDrift | None = None
    seconds: float
    rows_per_s: float
    started_us: Micros
    ended_us: Micros
    inputs: list[PlannedFile]

    @property
    def accuracy(self) -> float | None:
        """Share of the labelled rows whose answer is right; None without a label."""
        return self.correct / self.labelled if self.labelled else None

    @property
    def drifted(self) -> bool | None:
        """Whether the inputs or answers have drifted; None where that is not decided."""
        found = None if self.drift is None else self.drift.inputs_and_answers
        return found.alarm if found is not None and found.decided else None
