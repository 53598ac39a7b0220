"""What an installed package adds by its entry points: a real distribution, which pip installs into
a folder; nothing of it is imported before it is named."""

import subprocess
import sys
from dataclasses import replace
from importlib import invalidate_caches
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tidewheel
from federation.admission import Update
from federation.rounds.strategies import make
from streams.contract.task.extensions import extensions
from streams.contract.task.metrics import metric_of
from streams.runtime.trust import create_key
from tests.compose.cli.test_cli import fails
from tests.compose.cli.test_cli import tidewheel as command
from tests.rig.made_up.models import TINY, artifact, plain
from tests.rig.made_up.tiny_task import task as tiny
from tests.streams.batch.support import good_rows, submitted, write_parquet

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "tidewheel-own"
version = "1"

[project.entry-points."tidewheel.strategies"]
middle = "tidewheel_own.strategy:Middle"
broken = "tidewheel_own.missing:Nothing"
half = "tidewheel_own.strategy:Half"
none = "tidewheel_own.strategy:np"

[project.entry-points."tidewheel.metrics"]
cost = "tidewheel_own.metric:cost"

[project.entry-points."tidewheel.sinks"]
lines = "tidewheel_own.sink:Lines"
crashy = "tidewheel_own.sink:Crashy"
"""
STRATEGY = """
import numpy as np

class Middle:
    name, least, by_number, is_mean = "middle", 3, True, False
    def step(self, moves):
        names = moves[0].tensors
        return {n: np.median([m.tensors[n] for m in moves], axis=0) for n in names}
    statistics = step
    def state(self): return {}
    def load(self, state): pass

class Half:
    name, least = "half", 1
"""
METRIC = """
from tidewheel import Metric

def wrong(outputs, labels):
    return float((outputs.argmax(axis=1) != labels[:, 0]).sum())

cost = Metric("cost", wrong, greater_is_better=False)
"""
SINK = """
import os
from pathlib import Path
import pyarrow.parquet as pq

class Lines:
    def __init__(self, place, job):
        self.folder = Path("/" + place.partition("://")[2].lstrip("/"))
    def check(self, schema): pass
    def prepare(self, schema): self.folder.mkdir(parents=True, exist_ok=True)
    def load(self, shard, part, *, again):
        names = pq.read_table(part).column("id").to_pylist()
        (self.folder / str(shard)).write_text("\\n".join(map(str, names)))
    def count(self):
        return sum(len(f.read_text().splitlines()) for f in self.folder.iterdir())

class Crashy(Lines):
    def check(self, schema): fail("check")
    def prepare(self, schema): super().prepare(schema); fail("prepare")
    def load(self, shard, part, *, again): super().load(shard, part, again=again); fail("load")
    def count(self): fail("count"); return super().count()

def fail(method):
    if os.environ["CRASHY"] == method:
        raise KeyError("oops")
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the distribution is."""
    source, target = tmp_path_factory.mktemp("own"), tmp_path_factory.mktemp("installed")
    (source / "pyproject.toml").write_text(PROJECT)
    package = source / "tidewheel_own"
    package.mkdir()
    for name, text in {
        "__init__": "",
        "strategy": STRATEGY,
        "metric": METRIC,
        "sink": SINK,
    }.items():
        (package / f"{name}.py").write_text(text)
    words = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    pip = [sys.executable, "-m", "pip", *words, "--target", str(target), str(source)]
    subprocess.run(pip, check=True, capture_output=True, timeout=120)
    return target


@pytest.fixture
def own(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(installed))
    invalidate_caches()
    for name in [name for name in sys.modules if name.startswith("tidewheel_own")]:
        monkeypatch.delitem(sys.modules, name)
    return installed


def with_strategy(name: str) -> str:
    """A task file."""
    return (
        f"import dataclasses, tidewheel\nfound = tidewheel.load_task({TINY!r})\n"
        f"training = dataclasses.replace(found.training, strategy={name!r})\n"
        "task = dataclasses.replace(found, training=training)\n"
    )


def imported() -> list[str]:
    return sorted(name for name in sys.modules if name.startswith("tidewheel_own."))


@pytest.mark.usefixtures("own")
def test_a_package_adds_a_strategy() -> None:
    assert {"middle", "broken", "half"} <= extensions("strategies").keys()
    training = replace(tiny.training, strategy="middle")
    assert replace(tiny, training=training).training.strategy == "middle"
    assert imported() == []
    base = {"head.weight": np.zeros(4, np.float32)}
    updates = [
        Update(f"d{n}", "tiny", 1, "1-a", 64, {"head.weight": np.full(4, x, np.float32)})
        for n, x in enumerate((1.0, 2.0, 99.0))
    ]
    found = make("middle").aggregate(updates, base)
    assert found["head.weight"].tolist() == [2.0] * 4
    assert imported() == ["tidewheel_own.strategy"]


@pytest.mark.usefixtures("own")
def test_what_a_package_adds_wrongly_is_named() -> None:
    with pytest.raises(tidewheel.UsageError, match="strategy half has no by_number, is_mean, step"):
        make("half")
    with pytest.raises(tidewheel.UsageError, match="strategy none: TypeError: 'module' object is"):
        make("none")
    wrong = "tidewheel-own adds broken to tidewheel.strategies by tidewheel_own.missing:Nothing"
    with pytest.raises(tidewheel.UsageError, match=f"{wrong}, which cannot be imported: Module"):
        make("broken")


@pytest.mark.parametrize(
    "words", [["check", "{}"], ["up", "{}"], ["controller", TINY, "--strategy", "broken"]]
)
def test_a_strategy_that_cannot_be_imported_is_refused_before_anything_starts(
    words: list[str], tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(own))
    (tmp_path / "own.py").write_text(with_strategy("broken"))
    given = [word.format(f"{tmp_path / 'own.py'}:task") for word in words]
    wrong = "tidewheel-own adds broken to tidewheel.strategies by tidewheel_own.missing:Nothing"
    fails(command(*given, folder=tmp_path), 2, f"{wrong}, which cannot be imported: Module")


@pytest.mark.usefixtures("own")
def test_a_package_adds_a_metric_that_judges() -> None:
    task = replace(tiny, metric="cost")
    assert (metric_of(task).name, metric_of(task).greater_is_better) == ("cost", False)
    assert metric_of(task).of(np.eye(3), np.zeros((3, 1))) == 2.0
    assert replace(task, version=2).metric is task.metric


@pytest.mark.usefixtures("own")
def test_a_package_adds_a_sink_that_a_job_is_loaded_into(tmp_path: Path) -> None:
    key = create_key(tmp_path / "k.pem")
    (tmp_path / "model.twa").write_bytes(artifact(key, plain(1)))
    options: dict[str, Any] = {"model": tmp_path / "model.twa", "trust": [tmp_path / "k.pub"]}
    path = write_parquet(tmp_path / "a.parquet", good_rows(30))
    place = tmp_path / "rows"
    options |= {"state": tmp_path / "state", "processes": 1, "job": tmp_path / "job"}
    found = tidewheel.score(TINY, path, f"lines://{place}", id="event", **options)
    assert (found.state, found.succeeded) == ("Completed", 30)
    names = [name for file in place.iterdir() for name in file.read_text().split()]
    assert sorted(names) == sorted(str(row["event"]) for row in good_rows(30))


@pytest.mark.parametrize("method", ["prepare", "load", "count"])
@pytest.mark.usefixtures("own")
def test_an_error_in_a_packages_sink_fails_the_job_with_its_name_and_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    path = write_parquet(tmp_path / "a.parquet", good_rows(30))
    place = f"crashy://{tmp_path / 'rows'}"
    monkeypatch.setenv("CRASHY", method)
    job = submitted(tmp_path, path, to=place, job=tmp_path / "job")
    found = job.run()
    assert found.state == job.folder.state().state == "Failed"
    assert "sink crashy of tidewheel-own: KeyError: 'oops', " in found.reason
    assert "tidewheel_own/sink.py:" in found.reason
    assert job.folder.state().reason == found.reason
    monkeypatch.setenv("CRASHY", "nothing")
    found = job.run()
    assert (found.state, found.succeeded) == ("Completed", 30)


@pytest.mark.usefixtures("own")
def test_an_error_in_the_check_of_a_packages_sink_is_named_and_submits_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_parquet(tmp_path / "a.parquet", good_rows(30))
    monkeypatch.setenv("CRASHY", "check")
    with pytest.raises(tidewheel.UsageError, match=r"^sink crashy of tidewheel-own: KeyError: "):
        submitted(tmp_path, path, to=f"crashy://{tmp_path / 'rows'}", job=tmp_path / "job")
    assert not (tmp_path / "job" / "specification.json").exists()


@pytest.mark.parametrize(
    ("changes", "kind"),
    [({"metric": "costs"}, "metrics"), ({"training": "middel"}, "strategies")],
)
@pytest.mark.usefixtures("own")
def test_an_unknown_name_says_which_there_are_and_where_others_come_from(
    changes: dict[str, Any], kind: str
) -> None:
    if "training" in changes:
        changes = {"training": replace(tiny.training, strategy=changes["training"])}
    added = ", ".join(sorted(extensions(kind)))  # type: ignore[arg-type]
    with pytest.raises(tidewheel.TaskError) as raised:
        replace(tiny, **changes)
    assert f"or of packages' entry points tidewheel.{kind} ({added})" in str(raised.value)
    assert imported() == []


@pytest.mark.usefixtures("own")
def test_an_unknown_sink_says_which_packages_add(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", good_rows(30))
    with pytest.raises(tidewheel.UsageError) as raised:
        submitted(tmp_path, path, to="nosuch://x")
    assert "Protocol not known: nosuch" in str(raised.value)
    assert str(raised.value).endswith("; packages add these sinks for --to: crashy, lines")
    assert imported() == []


def test_without_packages_the_command_says_that_none_is_installed(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(with_strategy("geomed"))
    done = command("check", f"{tmp_path / 'own.py'}:task", folder=tmp_path)
    wanted = "packages' entry points tidewheel.strategies (none is installed), not 'geomed'"
    fails(done, 2, wanted)
