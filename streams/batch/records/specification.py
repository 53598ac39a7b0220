"""What a batch job is asked for: one model for the command `tidewheel score`, for the processes
that run the job, and for its stored specification; and how its input is cut. JSON documents, see
The job's folder in docs/architecture/batch.md."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError

from streams.contract.documents import Count, Document, Figure, Micros
from streams.contract.errors import UsageError

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
MAX_ERRORS = re.compile(r"(\d{1,15})|(\d{1,3}(?:\.\d+)?)%")


def seconds(value: object) -> float:
    """Return a time as 90s, 30m, 2h or 1d in seconds; raise ValueError."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d+)?|\d\.?\d*e-\d+)([smhd]?)", str(value))
    if match is None or float(match[1]) == 0:
        raise ValueError("write a time as 90s, 30m, 2h or 1d")
    return float(match[1]) * UNITS[match[2]]


def _names(value: object) -> object:
    names = (value.split(",") if value else []) if isinstance(value, str) else value
    if isinstance(names, list | tuple) and not all(str(name).strip() for name in names):
        raise ValueError("a column has no name: write a,b")
    return names


def _share(text: str) -> str:
    most_errors(text, 0)
    return text


def most_errors(text: str | None, total: int) -> int | None:
    """Return how many rows may have an error: a number, or a share of all rows; None: all."""
    if text is None:
        return None
    match = MAX_ERRORS.fullmatch(text)
    if match is None or (match[2] and float(match[2]) > 100):
        raise ValueError("write a number of rows, or a share as 5%")
    return int(match[1]) if match[1] else int(total * float(match[2]) / 100)


Place = Annotated[str, BeforeValidator(str)]  # a path in Python
Names = Annotated[list[str], BeforeValidator(_names)]  # comma-separated on the command line
Seconds = Annotated[float, BeforeValidator(seconds)]
MaxErrors = Annotated[str, BeforeValidator(_share)]


def _option(default: Any, text: str, metavar: str | None = None, name: str | None = None) -> Any:
    """Return a field with the help, metavar and name of its option."""
    return Field(default, description=text, json_schema_extra={"metavar": metavar, "name": name})


class Settings(Document):
    """The options of `tidewheel score`; `cwd` is the folder that relative paths start from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    inputs: list[Place] = _option(
        ...,
        "Files, folders, globs and URLs (s3://...) of Parquet, CSV or JSON Lines, or Delta tables.",
        "INPUT",
    )
    to: Place = _option(
        ...,
        "A new folder of Parquet files, of JSON Lines (.jsonl) or CSV (.csv), or a URL for them "
        "(s3://...); a Delta table (.delta); a database: .duckdb, .sqlite or "
        "postgresql://HOST/NAME.",
        "OUTPUT",
    )
    model: Place = _option(
        "served",
        "The model: an artifact, a device's challenger.safetensors, a version, the served one, the "
        "best one by a metric that was measured before its promotion, or the teacher, which "
        "answers whole windows of a device.",
        "FILE|VERSION|served|best:METRIC|teacher",
    )
    id: str | None = _option(None, "The column that names a row.", "COLUMN")
    columns: Names = _option(
        [],
        "The segment's list column, or one column a channel for segments of one sample, "
        "comma-separated; default: segment, or the channels.",
        "NAMES",
    )
    drop: Names = _option(
        [],
        "The segment's numbers are all columns but these and those that another option names, "
        "comma-separated.",
        "NAMES",
    )
    keep: Names = _option([], "Columns that are carried over, comma-separated.", "NAMES")
    label_column: str | None = _option(None, "The column of true labels.", "COLUMN")
    where: str | None = _option(None, "Score only these rows: a DuckDB expression.", "EXPRESSION")
    time: str | None = _option(None, "The column of the event time.", "COLUMN")
    device: str | None = _option(
        None, "The column of the device, for a teacher's windows.", "COLUMN"
    )
    start: str | None = _option(
        None, "Score only rows from this event time on.", "TIME", name="--from"
    )
    until: str | None = _option(None, "Score only rows before this event time.", "TIME")
    rows: Literal["segments", "readings"] = _option(
        "segments",
        "What a row is: a whole segment, or a reading with --time, a device (--id) and a column a "
        "channel, cut into segments as on the device.",
        "segments|readings",
        name="--as",
    )
    output_format: str | None = _option(
        None,
        "parquet, jsonl, csv, bedrock, delta, duckdb, sqlite or postgresql; default: by --to.",
        "FORMAT",
    )
    table: str = _option("scores", "The table of a database.")
    max_errors: MaxErrors | None = _option(
        None, "More rows with errors fail the job; default: never.", "N|P%"
    )
    timeout: Seconds | None = _option(
        None, "After 90s, 30m or 2h the job ends between two shards as PartiallyCompleted.", "TIME"
    )
    processes: Annotated[int, Field(ge=1)] | None = _option(
        None, "Processes that score; default: one a core, fewer for few rows."
    )
    expires_after: Seconds | None = _option(
        None, "With --detach: Expired if it has not begun by then, as 90s or 2h.", "TIME"
    )
    job: Path | None = _option(None, "The job's folder; default: OUTPUT.job beside it.", "FOLDER")
    state: Path = Path(".tidewheel")
    registry: str | None = None
    trust: list[Path] = []
    cwd: str = Field(default_factory=os.getcwd)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Return the settings of options by their names, without those that are None; raise
        UsageError for a value that an option cannot have."""
        try:
            return cls(**{name: value for name, value in given.items() if value is not None})
        except ValidationError as exc:
            first = exc.errors(include_url=False)[0]
            name = str(first["loc"][0])
            found = "" if first["type"] == "missing" else f" {given.get(name)}"
            text = first["msg"].removeprefix("Value error, ")
            raise UsageError(f"{option_name(name)}{found}: {text}") from exc

    def changed(self, **given: Any) -> Self:
        """Return the settings with those options replaced that are not None."""
        return self.of({**dict(self), **{n: v for n, v in given.items() if v is not None}})

    def mapped(self, change: Callable[[str], str]) -> Self:
        """Return the settings with every text changed, but for the folders of this machine."""

        def of(value: Any) -> Any:
            if isinstance(value, list):
                return [of(one) for one in value]
            return change(value) if isinstance(value, str) else value

        fixed = {"cwd", "state", "registry", "trust"}
        given = self.model_dump(mode="json", exclude=fixed)
        kept = {name: getattr(self, name) for name in fixed}
        return self.of({name: of(value) for name, value in given.items()} | kept)


def option_name(field: str) -> str:
    """Return the option of a field, as `--label-column`."""
    known = Settings.model_fields.get(field)
    extra = known.json_schema_extra if known is not None else None
    named = extra.get("name") if isinstance(extra, dict) else None
    return str(named or f"--{field.replace('_', '-')}")


InputFormat = Literal["parquet", "delta", "csv", "jsonl", "bedrock"]
OutputFormat = Literal[
    "parquet", "jsonl", "csv", "bedrock", "delta", "duckdb", "sqlite", "postgresql", "own"
]
EVER = 2**62  # microseconds
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


class Columns(Document):
    """The columns of the input, and which of its rows are scored; the others are excluded.

    segment  one list, or one column a number (`per_channel`)
    where    a DuckDB expression over the columns `typed`
    time     the column of the event time, from `from_us` to before `to_us`
    """

    segment: list[str]
    per_channel: bool
    id: str | None = None
    label: str | None = None
    keep: list[str] = []
    device: str | None = None  # of a teacher's windows
    where: str | None = None
    typed: list[Typed] = []
    time: str | None = None
    from_us: Micros = -EVER
    to_us: Micros = EVER

    @property
    def dated(self) -> bool:
        """Whether rows are excluded by their event time."""
        return self.from_us > -EVER or self.to_us < EVER

    @property
    def read(self) -> list[str]:
        """All columns that are read, each once."""
        timed = self.time if self.where or self.dated else None
        others = [name for name in (self.id, self.label, timed) if name is not None]
        chosen = [column.name for column in self.typed]
        return list(dict.fromkeys([*self.segment, *others, *self.keep, *chosen]))


class Specification(Document):
    """specification.json: what was asked for, and what that was when the job was submitted;
    `weights` is the SHA-256 of weights.safetensors, where a challenger answers; `kind` is the
    model's: a teacher answers whole windows."""

    format: int = 1
    id: str
    created_us: Micros
    settings: Settings
    task: TaskShape
    model: str
    digest: str
    kind: Literal["model", "teacher"] = "model"
    weights: str | None = None
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


class PlannedFile(Named):
    """An input file as it was hashed; `modified` is what its store changes with its content: the
    time of the last change in nanoseconds, or an ETag."""

    sha256: str  # "" until it is hashed
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
        return all(file.sha256 for file in self.files)

    @property
    def total(self) -> int:
        return sum(file.rows for file in self.files)
