"""Files of every version that was released are still read, and give what they gave then."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.golden.__main__ import HERE, keep
from tests.golden.formats import FORMATS

VERSIONS = sorted(path.name for path in HERE.iterdir() if (path / "spool.json").exists())

# The others hold times, the exporter's version, or a processor's last bits.
ALWAYS_THE_SAME = ("spool", "checkpoint", "store")


def plain(facts: Any) -> Any:
    return json.loads(json.dumps(facts, sort_keys=True))


def includes(found: Any, wanted: Any, where: str) -> None:
    """A later version may find more, and nothing else."""
    if isinstance(wanted, dict):
        assert found.keys() >= wanted.keys(), where
        for key, value in wanted.items():
            includes(found[key], value, f"{where}.{key}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        for i, (mine, value) in enumerate(zip(found, wanted, strict=True)):
            includes(mine, value, f"{where}[{i}]")
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, abs=1e-3), where
    else:
        assert found == wanted, where


def test_there_are_files_of_a_version() -> None:
    assert VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", FORMATS)
def test_what_an_earlier_version_wrote_is_read(version: str, name: str, tmp_path: Path) -> None:
    shutil.copytree(HERE / version / name, tmp_path / name)
    found = plain(FORMATS[name].read(tmp_path / name))
    wanted = json.loads((HERE / version / f"{name}.json").read_text())
    includes(found, wanted, name)


def test_the_script_writes_what_is_read_in_the_same_way(tmp_path: Path) -> None:
    keep(tmp_path / "now")
    for name in FORMATS:
        now, kept = (
            json.loads((folder / f"{name}.json").read_text())
            for folder in (tmp_path / "now", HERE / VERSIONS[-1])
        )
        assert now.keys() >= kept.keys(), name
        if name in ALWAYS_THE_SAME:
            assert now == kept, name
