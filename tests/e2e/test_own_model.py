"""A fleet whose model is a file of TorchScript: devices answer, the worker scores, and a graph of
ONNX that is imported goes through gate and canary to all of them. Nothing is learned, and that is
said."""

import signal

import pytest
import torch
from torch import nn

from streams.contract.task import load_task
from tests.rig.made_up.model_files import exported, jit, trained
from tests.rig.processes.fleet import Place, check_account

FOREIGN = """
from dataclasses import replace
from pathlib import Path
from tidewheel import OnnxFile, load_task
tiny = load_task("{tiny}")

def before(segments):
    return {{"segments": segments}}

def after(outputs):
    return next(iter(outputs.values()))

first = OnnxFile(Path(__file__).with_name("first.pt"), before, after)
task = replace(tiny, name="foreign", build_model=first, may_trade_classes=True)
"""


class Named(nn.Module):
    """Names its input as the graph does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, segments: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model(segments)
        return found


@pytest.mark.timeout(1200)
def test_another_graph_reaches_a_fleet_that_does_not_learn(embedded_place: Place) -> None:
    place, path = embedded_place, embedded_place.folder / "other.py"
    path.write_text(FOREIGN.format(tiny=place.task))
    tiny, task = load_task(place.task), f"{path}:task"
    torch.manual_seed(0)
    jit(Named(tiny.build_model()).eval(), place.folder / "first.pt")
    exported(tiny, trained(tiny), place.folder / "better.onnx")
    running = place.up("up", "--devices", "3", "--speed", "30", "--stages", "0.5,1", task=task)
    running.until_said("3 serve 1-", 150)
    (place.folder / "first.pt").unlink()  # what devices run is in the signed artifact
    said = place.tidewheel("models", "import", task, "better.onnx", "--state", place.state)
    better = said.split()[0]
    running.until_said(f"release: all devices serve {better}: canary passed", 120)
    running.until_said(f"3 serve {better}", 60)
    running.signal(signal.SIGINT)
    assert running.ends(120) == 0, running.told
    place.nothing_is_left()
    summary = running.summary()
    check_account(place, summary)
    assert {line["active"] for line in summary["devices"]} == {better}
    assert summary["agreement"][better] > summary["agreement"][summary["first_model"]]
    assert summary["runs"] == []  # though the first version agreed too seldom
    shown = place.tidewheel("models", "list", task, better, "--state", place.state)
    assert "better.onnx sha256:" in shown
    with pytest.raises(AssertionError, match="does not learn"):
        place.tidewheel("train", task, "--state", place.state)
    with pytest.raises(AssertionError, match="does not learn"):
        place.tidewheel("up", task, "--until-closed", "--state", place.state)
