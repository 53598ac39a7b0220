"""Whether code has changed since it was measured: digests of folders and files, as they lie on the
disk.

A folder's digest is the SHA-256 of its files' paths and contents, a file's that of a folder which
has this file alone. Texts (`.md`) and tests do not
count, nor what Python compiles. Uses the standard library alone: the site's build imports it too.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]


def digest(part: Path) -> str:
    """Return the digest of a folder or a file; of one that is missing, that of an empty folder."""
    total, folder = hashlib.sha256(), part.parent if part.is_file() else part
    for path in [part] if part.is_file() else sorted(part.rglob("*")):
        if path.is_file() and _counts(path.relative_to(folder)):
            name = path.relative_to(folder).as_posix()
            total.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def _counts(path: Path) -> bool:
    made = "__pycache__" in path.parts or path.suffix == ".pyc"
    return not made and path.suffix != ".md" and not path.name.startswith("test_")


def digests(parts: Iterable[str], root: Path = ROOT) -> dict[str, str]:
    """Return the digest of each folder and file, by its path below `root`."""
    return {part: digest(root / part) for part in parts}


def changed(measured: Mapping[str, str], root: Path = ROOT) -> list[str]:
    """Return the folders and files that differ from those that were measured."""
    return [part for part, was in measured.items() if digest(root / part) != was]


def warning(commit: str, measured: Mapping[str, str], root: Path = ROOT) -> str | None:
    """Return the sentence that a page of old figures needs; None where the code is the same."""
    folders = [f"`{part}`" for part in changed(measured, root)]
    if not folders:
        return None
    return f"The figures are of commit {commit}. Since then {', '.join(folders)} changed."
