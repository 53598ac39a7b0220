"""Taking up a dead run once, whatever dies meanwhile; the file and the choice of the checkpoint.
The steps together with Kafka are in test_controller."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from federation.controller.flwr_cli import ConfigValue, Flwr, Submission
from federation.controller.run_recovery import RESUMES, Resumer
from federation.rounds import checkpoint
from federation.rounds.checkpoint import About, Checkpoint, Lasting
from streams.contract.errors import ProcessFailed


@dataclass(frozen=True)
class Flower(Submission):
    """Takes runs; `lost` ones it takes without saying so."""

    taken: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def start(self, config: Mapping[str, ConfigValue], folder: Path) -> str:
        self.taken.append(str(config["resume"]))
        if self.lost:
            raise ProcessFailed("`flwr run` cannot be run: timed out")
        return f"n{len(self.taken)}"

    def runs(self) -> dict[str, str]:
        return {f"n{n}": "running" for n in range(len(self.taken), 0, -1)} | {"r": "finished"}


@pytest.fixture
def flower() -> Flower:
    return Flower(Flwr("flwr", "tidewheel"), Path())


def resumer(folder: Path, flower: Flower) -> Resumer:
    return Resumer(folder, folder / "runs", flower, {"rounds": 2})


def test_a_run_is_taken_up_so_often_and_then_given_up(tmp_path: Path, flower: Flower) -> None:
    run: str | None = "r"
    for _ in range(RESUMES):
        assert run is not None
        run = resumer(tmp_path, flower).resume(run, "dead", flower.runs())
    assert run == f"n{RESUMES}"
    last = resumer(tmp_path, flower)
    assert last.earlier == ["r", "n1", "n2"]
    assert last.resume(run, "dead", flower.runs()) is None
    last.forget("r")
    assert last.lineage is not None
    last.forget(run)
    assert resumer(tmp_path, flower).lineage is None
    assert resumer(tmp_path, flower).resume("other", "dead", flower.runs()) is not None


def test_the_newest_run_with_a_sound_checkpoint_is_gone_on_with(
    tmp_path: Path, flower: Flower
) -> None:
    lasting = Lasting(rounds=1, epochs=1, learning_rate=0.1, margin=0.0, seed=0)
    about = About(run="r", round=1, task="t", task_version=1, base="1-a", settings=lasting)
    checkpoint.save(tmp_path / "runs", Checkpoint(about, {"w": np.zeros(1)}))
    broken = tmp_path / "runs" / "n1" / "round-0000.safetensors"
    broken.parent.mkdir()
    broken.write_bytes(b"x")
    assert resumer(tmp_path, flower).resume("r", "dead", flower.runs()) == "n1"
    assert resumer(tmp_path, flower).resume("n1", "dead", flower.runs()) == "n2"
    assert flower.taken == ["r", "r"]


@pytest.mark.parametrize("text", ["", "{", '{"runs": 1}', '{"runs": []}'])
def test_a_file_that_cannot_be_read_is_passed_over(
    tmp_path: Path, flower: Flower, text: str
) -> None:
    (tmp_path / "lineage.json").write_text(text)
    assert resumer(tmp_path, flower).lineage is None
