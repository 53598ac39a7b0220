"""What a batch job is asked for: one model for the command `tidewheel score`, for the processes
that run the job, and for its stored specification; and how its input is cut. JSON documents, see
The job's folder in docs/architecture/batch.md."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_type_hints

import msgspec

from streams.contract.documents import Document, Micros
from streams.contract.errors import MalformedRecord, UsageError
from streams.runtime import option

MAX_ERRORS = re.compile(r"(\d{1,15})|(\d{1,3}(?:\.\d+)?)%")
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


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
    """Return how many of `total` may be wrong: a number, or a share; None: all."""
    if text is None:
        return None
    match = MAX_ERRORS.fullmatch(text)
    if match is None or (match[2] and float(match[2]) > 100):
        raise ValueError("write a number of rows, or a share as 5%")
    return int(match[1]) if match[1] else int(total * float(match[2]) / 100)


# What the command line reads of an option's text.
READ: dict[str, Callable[[Any], Any]] = {
    "inputs": lambda places: [str(place) for place in places], "to": str, "model": str,
    "columns": _names, "drop": _names, "keep": _names, "max_errors": _share,
    "timeout": seconds, "expires_after": seconds, "job": Path, "state": Path,
}  # fmt: skip


class Settings(Document, forbid_unknown_fields=True):
    """The options of `tidewheel score`; `cwd` is the folder that relative paths start from."""

    task: str
    inputs: Annotated[
        list[str],
        option(
            "Files, folders, globs and URLs (s3://...) of Parquet, CSV or JSON Lines, or Delta "
            "tables.",
            "INPUT",
        ),
    ]
    to: Annotated[
        str,
        option(
            "A new folder of Parquet files, of JSON Lines (.jsonl) or CSV (.csv), or a URL for "
            "them (s3://...); a Delta table (.delta); a database: .duckdb, .sqlite or "
            "postgresql://HOST/NAME.",
            "OUTPUT",
        ),
    ]
    model: Annotated[
        str,
        option(
            "The model: an artifact, a device's challenger.safetensors, a version, the served one, "
            "the best one by a metric that was measured before its promotion, or the teacher, "
            "which answers whole windows of a device.",
            "FILE|VERSION|served|best:METRIC|teacher",
        ),
    ] = "served"
    id: Annotated[str | None, option("The column that names a row.", "COLUMN")] = None
    columns: Annotated[
        list[str],
        option(
            "The segment's list column, or one column a channel for segments of one sample, "
            "comma-separated; default: segment, or the channels.",
            "NAMES",
        ),
    ] = []
    drop: Annotated[
        list[str],
        option(
            "The segment's numbers are all columns but these and those that another option names, "
            "comma-separated.",
            "NAMES",
        ),
    ] = []
    keep: Annotated[
        list[str], option("Columns that are carried over, comma-separated.", "NAMES")
    ] = []
    label_column: Annotated[str | None, option("The column of true labels.", "COLUMN")] = None
    where: Annotated[
        str | None, option("Score only these rows: a DuckDB expression.", "EXPRESSION")
    ] = None
    time: Annotated[str | None, option("The column of the event time.", "COLUMN")] = None
    device: Annotated[
        str | None, option("The column of the device, for a teacher's windows.", "COLUMN")
    ] = None
    start: Annotated[
        str | None, option("Score only rows from this event time on.", "TIME", name="--from")
    ] = None
    until: Annotated[str | None, option("Score only rows before this event time.", "TIME")] = None
    rows: Annotated[
        Literal["segments", "readings"],
        option(
            "What a row is: a whole segment, or a single reading (raw data), with --time, a device "
            "(--id) and a column a channel, which is cut into segments as on the device.",
            "segments|readings",
            name="--as",
        ),
    ] = "segments"
    output_format: Annotated[
        str | None,
        option(
            "parquet, jsonl, csv, bedrock, delta, duckdb, sqlite or postgresql; default: by --to.",
            "FORMAT",
        ),
    ] = None
    table: Annotated[str, option("The table of a database.")] = "scores"
    max_errors: Annotated[
        str | None,
        option(
            "More rows with errors, or more broken readings, fail the job; default: never.", "N|P%"
        ),
    ] = None
    timeout: Annotated[
        float | None,
        option(
            "After 90s, 30m or 2h the job ends between two shards as PartiallyCompleted.", "TIME"
        ),
    ] = None
    processes: Annotated[
        Annotated[int, msgspec.Meta(ge=1)] | None,
        option("Processes that score; default: one a core, fewer for few rows.", ge=1),
    ] = None
    expires_after: Annotated[
        float | None,
        option("With --detach: Expired if it has not begun by then, as 90s or 2h.", "TIME"),
    ] = None
    job: Annotated[
        Path | None, option("The job's folder; default: OUTPUT.job beside it.", "FOLDER")
    ] = None
    state: Path = Path(".tidewheel")
    registry: str | None = None
    trust: list[Path] = []
    cwd: str = msgspec.field(default_factory=os.getcwd)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Return the settings of options by their names, without those that are None; raise
        UsageError for a value that an option cannot have."""
        found = {name: value for name, value in given.items() if value is not None}
        for name in found.keys() - set(cls.__struct_fields__):
            raise UsageError(f"{option_name(name)} {found[name]}: it is not an option")
        for name in READ.keys() & found.keys():
            try:
                found[name] = READ[name](found[name])
            except ValueError as exc:
                raise UsageError(f"{option_name(name)} {given[name]}: {exc}") from exc
        try:
            return cls.of_fields(found)
        except MalformedRecord as exc:
            name, _, text = str(exc).removeprefix("bad-document: Settings ").partition(": ")
            value = f" {given[name]}" if name in given else ""
            raise UsageError(f"{option_name(name)}{value}: {text}") from exc

    def changed(self, **given: Any) -> Self:
        """Return the settings with those options replaced that are not None."""
        return self.of(
            {**msgspec.structs.asdict(self), **{n: v for n, v in given.items() if v is not None}}
        )

    def mapped(self, change: Callable[[str], str]) -> Self:
        """Return the settings with every text changed, but for the folders of this machine."""

        def of(value: Any) -> Any:
            if isinstance(value, list):
                return [of(one) for one in value]
            return change(value) if isinstance(value, str) else value

        fixed = {"cwd", "state", "registry", "trust"}
        given = msgspec.structs.asdict(self).items()
        return self.of({n: value if n in fixed else of(value) for n, value in given})


def option_name(field: str) -> str:
    """Return the option of a field, as `--label-column`."""
    about = options().get(field)
    named = about.extra["name"] if about is not None and about.extra else None
    return str(named or f"--{field.replace('_', '-')}")


def options() -> dict[str, msgspec.Meta]:
    """Return what is said of each field that is an option."""
    kinds = get_type_hints(Settings, include_extras=True)
    return {name: k.__metadata__[0] for name, k in kinds.items() if hasattr(k, "__metadata__")}


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
    threshold: float
    tolerance: float


class Typed(Document):
    """A column of a text format as `--where` sees it."""

    name: str
    kind: Literal["integer", "number", "boolean", "text"]


class Columns(Document):
    """The columns of the input, and which of its rows are scored; the others are excluded.

    segment  one list, or one column a number (`per_channel`)
    where    a DuckDB expression over the columns `typed`
    time     the column of the event time, from `from_us` to before `to_us`
    whole    whether rows that `where` leaves out are read too: as readings that segments need
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
    whole: bool = False

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
