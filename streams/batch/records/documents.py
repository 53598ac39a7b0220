"""What a job was asked for, and how its input is cut, as JSON documents: The job's folder
in docs/architecture/batch.md."""

from typing import Literal, get_args

from streams.contract.documents import Count, Document, Figure, Micros
from streams.contract.errors import UsageError

InputFormat = Literal[
    "parquet", "arrow", "arrows", "delta", "csv", "tsv", "jsonl", "bedrock", "events"
]
OutputFormat = Literal[
    "parquet", "jsonl", "csv", "bedrock", "delta", "duckdb", "sqlite", "postgresql", "kafka"
]
FILES: frozenset[OutputFormat] = frozenset({"parquet", "jsonl", "csv", "bedrock"})


def input_format(name: str | None) -> InputFormat | None:
    """Return a format that can be named; raise UsageError for another name."""
    known = [one for one in get_args(InputFormat) if one not in ("delta", "events")]
    if name is not None and name not in known:
        raise UsageError(f"the input format {name} is none of {', '.join(known)}")
    return name  # type: ignore[return-value]


class Constant(Document):
    """A column that has one value in a whole file: a partition column of a Delta table.

    `type` is Delta's name of a primitive type, `value` its text; None: null.
    """

    name: str
    type: str
    value: str | None


class Named(Document):
    """An input file: `name` as it was found, and its absolute path or its URL."""

    name: str
    path: str
    constants: list[Constant] = []


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


class Frozen(Document):
    """The range of a topic that a job scores: the first and the end offset of each input."""

    topic: str
    ranges: list[tuple[Count, Count]]


class Specification(Document):
    """specification.json: what was asked for, frozen.

    kind      of the model: a teacher answers whole windows
    weights   SHA-256 of weights.safetensors, where a personal model answers
    teacher   whose answers stand beside those of the model
    device    where a teacher runs
    """

    format: int = 1
    id: str
    created_us: Micros
    task: TaskShape
    model: str
    digest: str
    kind: Literal["model", "teacher"] = "model"
    weights: str | None = None
    teacher: Version | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    inputs: list[Named]
    input_format: InputFormat
    rows: Literal["segments", "readings", "events"] = "segments"
    topic: Frozen | None = None
    columns: Columns
    output: str
    output_format: OutputFormat
    table: str = "scores"
    max_errors: str | None = None

    @property
    def in_files(self) -> bool:
        """Whether the shards' local files are the output; else they are loaded from the job's
        folder into a table, a topic or objects under a URL."""
        return self.output_format in FILES and "://" not in self.output

    @property
    def windowed(self) -> bool:
        """Whether a teacher answers."""
        return self.kind == "teacher" or self.teacher is not None


class PlannedFile(Document):
    """An input file as it was hashed; `modified` is what its store changes with its content: the
    time of the last change in nanoseconds, or an ETag."""

    name: str
    path: str
    constants: list[Constant] = []
    sha256: str
    bytes: Count
    modified: str
    rows: Count


class Shard(Document):
    """Rows of one file: row groups `start` to `stop` of Parquet, record batches
    of Arrow files, bytes of Arrow streams, CSV and JSON Lines, offsets of a topic.

    Where the rows are readings, `rows` are the segments that end in the shard, and `first_row` is
    that of its first reading. Where a teacher answers, `around` are the first and the last shard
    that have rows of its windows. Of a topic, `sha256` is that of the messages, and `repeats` are
    the events that came before: an offset, and the first and the last seq.
    """

    file: Count
    start: Count
    stop: Count
    first_row: Count
    rows: Count
    readings: Count = 0
    around: tuple[Count, Count] | None = None
    sha256: str = ""
    repeats: list[tuple[Count, Count, Count]] = []


class Plan(Document):
    """plan.json: the input as it was hashed and cut."""

    files: list[PlannedFile]
    shards: list[Shard]

    @property
    def total(self) -> int:
        return sum(file.rows for file in self.files)
