"""Where a job's rows go: what `--to` names."""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from streams.batch.records.documents import FILES, OutputFormat
from streams.contract.errors import UsageError

SUFFIXES: dict[str, OutputFormat] = {
    ".jsonl": "jsonl", ".csv": "csv", ".delta": "delta", ".duckdb": "duckdb",
    ".sqlite": "sqlite", ".db": "sqlite",
}  # fmt: skip
SCHEMES: dict[str, OutputFormat] = {
    "postgresql://": "postgresql", "postgres://": "postgresql",
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A folder of files, a database or objects; `place` is an absolute path or a URL."""

    kind: OutputFormat
    place: str

    @property
    def name(self) -> str:
        """A name for the job's folder."""
        if not self.local:
            return self.place.partition("?")[0].rstrip("/").rpartition("/")[2].rpartition(":")[2]
        return Path(self.place).name

    @property
    def beside(self) -> Path:
        """The folder in which the job's folder is by default."""
        return Path(self.place).parent if self.local else Path.cwd()

    @property
    def local(self) -> bool:
        """Whether `place` is a path."""
        return "://" not in self.place


def target_of(text: str, kind: str | None = None) -> Target:
    """Return what `--to` names; raise UsageError for what cannot be one."""
    known = get_args(OutputFormat)
    if kind is not None and kind not in known:
        raise UsageError(f"--output-format {kind}: {', '.join(known)}")
    scheme = next((one for one in SCHEMES if text.startswith(one)), None)
    found: OutputFormat = SCHEMES[scheme] if scheme else SUFFIXES.get(Path(text).suffix, "parquet")
    found = kind or found  # type: ignore[assignment]
    if scheme is None and "://" in text:
        return _objects(text, found)
    if found == "postgresql" and scheme is None:
        raise UsageError(f"--to {text}: write postgresql://HOST/DATABASE")
    if found == "postgresql":
        if "@" in text and ":" in text.partition("://")[2].partition("@")[0]:
            raise UsageError("--to names a password, which the job would keep: use PGPASSWORD or "
                             "~/.pgpass")  # fmt: skip
        return Target(found, text)
    return Target(found, str(Path(text).absolute()))


def _objects(url: str, kind: OutputFormat) -> Target:
    if kind not in FILES or url.startswith(("file://", "local://")):
        raise UsageError(
            f"--to {url}: a URL takes objects of Parquet, JSON Lines or CSV; write a local folder "
            "or a database"
        )
    return Target(kind, url.rstrip("/"))
