"""What a job was asked for, and how its input is cut, as JSON documents: The job's folder
in docs/architecture/batch.md."""

from typing import Literal

from streams.batch.records.settings import Settings
from streams.contract.documents import Count, Document, Figure, Micros

InputFormat = Literal["parquet", "arrow", "delta", "csv", "jsonl", "bedrock"]
OutputFormat = Literal[
    "parquet", "jsonl", "csv", "bedrock", "delta", "duckdb", "sqlite", "postgresql"
]
FILES: frozenset[OutputFormat] = frozenset({"parquet", "jsonl", "csv", "bedrock"})


class Named(Document):
    """An input file: `name` as it was found, and its absolute path or its URL. Of a Delta table,
    `table` has its place, its version, and the path in it."""

    name: str
    path: str
    table: tuple[str, int, str] | None = None


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


class Typed(Document):
    """A column of a text format as `--where` sees it."""

    name: str
    kind: Literal["integer", "number", "boolean", "text"]


class Selection(Document):
    """Which rows of the input are scored; the others are excluded.

    where  a DuckDB expression over `columns`
    time   the column of the event time, from `from_us` to before `to_us`
    """

    where: str | None = None
    columns: list[Typed] = []
    time: str | None = None
    from_us: Micros | None = None
    to_us: Micros | None = None

    @property
    def all(self) -> bool:
        """Whether no row is excluded."""
        return self.where is None and self.from_us is None and self.to_us is None


class Columns(Document):
    """The columns of the input: of the segment one list, or one column a number."""

    segment: list[str]
    per_channel: bool
    id: str | None = None
    label: str | None = None
    keep: list[str] = []
    device: str | None = None  # of a teacher's windows
    selection: Selection = Selection()

    @property
    def read(self) -> list[str]:
        """All columns that are read, each once."""
        named = [self.id, self.label, None if self.selection.all else self.selection.time]
        others = [name for name in named if name is not None]
        chosen = [column.name for column in self.selection.columns]
        return list(dict.fromkeys([*self.segment, *others, *self.keep, *chosen]))


class Version(Document):
    """A model version and its artifact's digest."""

    model: str
    digest: str


class Specification(Document):
    """specification.json: what was asked for, and what that was when the job was submitted.

    kind      of the model: a teacher answers whole windows
    weights   SHA-256 of weights.safetensors, where a personal model answers
    teacher   whose answers stand beside those of the model
    """

    format: int = 1
    id: str
    created_us: Micros
    settings: Settings
    task: TaskShape
    model: str
    digest: str
    kind: Literal["model", "teacher"] = "model"
    weights: str | None = None
    teacher: Version | None = None
    inputs: list[Named]
    input_format: InputFormat
    columns: Columns
    output: str
    output_format: OutputFormat

    @property
    def in_files(self) -> bool:
        """Whether the shards' local files are the output; else they are loaded from the job's
        folder into a table or objects under a URL."""
        return self.output_format in FILES and "://" not in self.output

    @property
    def windowed(self) -> bool:
        """Whether a teacher answers."""
        return self.kind == "teacher" or self.teacher is not None


class PlannedFile(Named):
    """An input file as it was hashed; `modified` is what its store changes with its content: the
    time of the last change in nanoseconds, or an ETag."""

    sha256: str
    bytes: Count
    modified: str
    rows: Count


class Shard(Document):
    """Rows of one file: row groups `start` to `stop` of Parquet, record batches
    of Arrow files, bytes of CSV and JSON Lines.

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
    def total(self) -> int:
        return sum(file.rows for file in self.files)
