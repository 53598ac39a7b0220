"""The JSON documents of a job: docs/architecture/batch.md, The job's folder."""

from typing import Literal

from pydantic import Field

from streams.contract.documents import Count, Document, Figure, Micros

InputFormat = Literal["parquet", "arrow", "jsonl"]
OutputFormat = Literal["parquet", "jsonl"]
State = Literal[
    "Submitted", "Validating", "InProgress", "Stopping", "Stopped", "Completed", "Failed"
]


class Named(Document):
    """An input file: `name` as it was found, and its absolute path."""

    name: str
    path: str


class TaskShape(Document):
    """What a job must find again in its task."""

    reference: str
    name: str
    version: int
    channels: list[str]
    samples: int
    outputs: list[str]
    threshold: Figure
    tolerance: Figure


class Columns(Document):
    """The columns of the input: of the segment one list, or one number a channel."""

    segment: list[str]
    per_channel: bool
    id: str | None = None
    label: str | None = None
    keep: list[str] = []

    @property
    def read(self) -> list[str]:
        """All columns that are read, each once."""
        others = [name for name in (self.id, self.label) if name is not None]
        return list(dict.fromkeys([*self.segment, *others, *self.keep]))


class Specification(Document):
    """specification.json: what was asked for, frozen."""

    format: int = 1
    created_us: Micros
    task: TaskShape
    model: str
    digest: str
    inputs: list[Named]
    input_format: InputFormat
    columns: Columns
    output: str
    output_format: OutputFormat
    max_errors: str | None = None


class PlannedFile(Document):
    """An input file as it was hashed."""

    name: str
    path: str
    sha256: str
    bytes: Count
    modified_ns: Micros
    rows: Count


class Shard(Document):
    """Rows of one file: row groups `start` to `stop` of Parquet, record batches
    of Arrow, bytes of JSON Lines."""

    file: Count
    start: Count
    stop: Count
    first_row: Count
    rows: Count


class Plan(Document):
    """plan.json: the input as it was hashed and cut."""

    files: list[PlannedFile]
    shards: list[Shard]

    @property
    def total(self) -> int:
        return sum(file.rows for file in self.files)


class Counts(Document):
    """What became of rows; `correct` are of the `labelled`."""

    succeeded: Count = 0
    errors: dict[str, Count] = {}
    labelled: Count = 0
    correct: Count = 0

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    @property
    def processed(self) -> int:
        return self.succeeded + self.failed

    def plus(self, other: "Counts") -> "Counts":
        codes = sorted({*self.errors, *other.errors})
        return Counts(
            succeeded=self.succeeded + other.succeeded,
            errors={code: self.errors.get(code, 0) + other.errors.get(code, 0) for code in codes},
            labelled=self.labelled + other.labelled,
            correct=self.correct + other.correct,
        )


class ShardRecord(Document):
    """shards/<number>.json; `bytes` are those of the output file."""

    state: Literal["InProgress", "Completed"]
    attempts: int = Field(ge=1)
    counts: Counts = Counts()
    seconds: Figure = 0.0
    bytes: Count = 0


class JobState(Document):
    """state.json"""

    state: State
    reason: str = ""
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
    total: Count
    processed: Count
    succeeded: Count
    errors: dict[str, Count]
    labelled: Count
    correct: Count
    seconds: Figure
    rows_per_s: Figure
    started_us: Micros
    ended_us: Micros
    inputs: list[PlannedFile]
