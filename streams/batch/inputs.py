"""The input of a job: the files that are named, and what must be right before it is submitted."""

import glob
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from streams.batch import table_rows
from streams.batch.documents import Columns, InputFormat, Named
from streams.batch.json_rows import MAX_LINE_BYTES, lines_of, object_of
from streams.batch.rows import RowProblem
from streams.batch.tables import opened_input
from streams.contract.errors import UsageError
from streams.contract.task import Task

FORMATS: dict[str, InputFormat] = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
LOOKED_AT = 100  # lines of a JSON Lines file that are looked at for a column
SEGMENT = "segment"
OURS = frozenset(
    {"id", "file", "row", "model", "outputs", "class", "probability", "label", "correct", "error",
     "reason"}
)  # fmt: skip


def find_files(named: Sequence[str]) -> list[Named]:
    """Return the files, folders and globs that are named as files, each once; raise UsageError
    for what is missing."""
    found: dict[str, Named] = {}
    for text in named:
        paths = list(_matches(text))
        if not paths:
            raise UsageError(f"{text}: no such file, or no {', '.join(FORMATS)} file in it")
        for path in paths:
            whole = str(path.resolve())
            found.setdefault(whole, Named(name=str(path), path=whole))
    return list(found.values())


def _matches(text: str) -> Iterator[Path]:
    path = Path(text)
    if path.is_file():
        yield path
        return
    found = glob.glob(text, recursive=True)  # noqa: PTH207 - also of absolute patterns
    roots = [path] if path.is_dir() else [Path(name) for name in sorted(found)]
    for root in roots:
        if root.is_file() and root.suffix in FORMATS:
            yield root
        elif root.is_dir():
            yield from sorted(p for p in root.rglob("*") if p.is_file() and _counts(p, root))


def _counts(path: Path, root: Path) -> bool:
    hidden = any(part[0] in "._" for part in path.relative_to(root).parts)
    return path.suffix in FORMATS and not hidden


def format_of(files: Sequence[Named]) -> InputFormat:
    """Return the format of all files; raise UsageError for another one, or for several."""
    for file in files:
        if Path(file.path).suffix not in FORMATS:
            raise UsageError(f"{file.name}: the input must be {', '.join(FORMATS)}")
    kinds = {FORMATS[Path(file.path).suffix] for file in files}
    if len(kinds) > 1:
        raise UsageError(f"the input is {' and '.join(sorted(kinds))}: make a job of each")
    return kinds.pop()


def choose_columns(
    task: Task,
    files: Sequence[Named],
    segment: Sequence[str],
    identity: str | None,
    label: str | None,
    keep: Sequence[str],
) -> Columns:
    """Return the columns to read; raise UsageError where the input cannot have them."""
    channels, samples = task.segment_shape
    if clash := sorted(set(keep) & OURS):
        raise UsageError(f"--keep {clash[0]}: the output has a column of that name, rename yours")
    for name in (*segment, *keep):
        if not name.strip():
            raise UsageError("a column has no name: write --columns a,b")
    names, per_channel = list(segment) or [SEGMENT], False
    if samples == 1:
        if len(segment) == channels:
            per_channel = True
        elif not segment and _has_all(files[0], task.channels):
            names, per_channel = list(task.channels), True
    if len(names) != (channels if per_channel else 1):
        others = f", or {channels} columns, one a channel" if samples == 1 else ""
        raise UsageError(f"--columns {','.join(names)}: name one list column{others}")
    return Columns(
        segment=names, per_channel=per_channel, id=identity, label=label, keep=list(keep)
    )


def check_files(task: Task, kind: InputFormat, files: Sequence[Named], columns: Columns) -> None:
    """Raise UsageError, by name, for a file that lacks a column or has one of a wrong type."""
    if kind != "jsonl":
        table_rows.check_files(task, [(file.name, Path(file.path)) for file in files], columns)
        return
    everywhere: set[str] = set()
    for file in files:
        found = _first_names(Path(file.path))
        needed = columns.segment if columns.id is None else [*columns.segment, columns.id]
        if found:
            _refuse_missing(file.name, needed, found)
        everywhere |= found
    if everywhere:  # a label or another value may be in some lines only
        _refuse_missing(files[0].name, columns.read, everywhere)


def _refuse_missing(name: str, columns: Sequence[str], found: set[str]) -> None:
    for column in columns:
        if column not in found:
            names = ", ".join(sorted(found))[:200]
            raise UsageError(f"{name} has no {column!r} in its first lines; it has {names}")


def _has_all(file: Named, names: Sequence[str]) -> bool:
    path = Path(file.path)
    if FORMATS[path.suffix] != "jsonl":
        with opened_input(file.name, path) as table:
            return set(names) <= set(table.schema.names)
    return set(names) <= _first_names(path)


def _first_names(path: Path) -> set[str]:
    """Return the keys of a JSON Lines file's first objects; none where no line is one."""
    found: set[str] = set()
    try:
        with path.open("rb") as file:
            for _, line in islice(lines_of(file, MAX_LINE_BYTES), LOOKED_AT):
                try:
                    found |= object_of(line).keys()
                except RowProblem:
                    continue
    except OSError as exc:
        raise UsageError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    return found
