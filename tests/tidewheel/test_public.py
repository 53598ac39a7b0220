"""What users import: all of it is documented, every example runs, nothing heavy comes with it."""

import doctest
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

import tidewheel
from streams.worker.store.delta_store import SCORES, DeltaStore
from streams.worker.windows.rows import store_schema

PUBLIC = sorted(tidewheel.__all__)


def test_what_is_public_is_sorted_and_there() -> None:
    assert tidewheel.__all__ == PUBLIC
    assert all(hasattr(tidewheel, name) for name in PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_each_public_name_has_a_docstring_with_an_example_that_runs(name: str) -> None:
    found = getattr(tidewheel, name)
    module = importlib.import_module(found.__module__)
    tests = doctest.DocTestFinder(recurse=False).find(found, name, module=module, globs={})
    assert sum(len(test.examples) for test in tests) > 0
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    said: list[str] = []
    for test in tests:
        runner.run(test, out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)


def test_the_package_names_all_that_is_public() -> None:
    text = tidewheel.__doc__ or ""
    assert [name for name in PUBLIC if name not in text] == []


def test_importing_it_loads_nothing_that_a_device_lacks() -> None:
    code = "import json, sys, tidewheel; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "faust", "flwr", "deltalake", "duckdb", "onnxruntime", "kafka"}
    assert heavy & set(json.loads(done.stdout)) == set()


def test_scores_are_read_as_they_were_committed(tmp_path: Path) -> None:
    rows = [
        {
            "device": "d0", "epoch": "e", "seq": seq, "time": 10 + seq, "window": 0, "revision": 0,
            "model": "1-a", "outputs": [0.5, 1.5], "teacher_model": "2-b", "teacher": [1.0, 0.0],
            "label": None, "agrees": False, "correct": None, "partition": 0, "commit": 1, "day": 0,
        }
        for seq in range(3)
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, store_schema())
    DeltaStore(tmp_path / "store").commit(SCORES, table, {0: 1})
    found = tidewheel.read_scores(tmp_path).to_table(columns=["seq", "outputs"])
    assert sorted(found.column("seq").to_pylist()) == [0, 1, 2]
    assert found.column("outputs").to_pylist()[0] == [0.5, 1.5]


def test_without_a_store_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(tidewheel.UsageError, match=f"{tmp_path}/store is not a store"):
        tidewheel.read_scores(tmp_path)
