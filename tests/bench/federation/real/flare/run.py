"""One run of NVFlare, in its own virtualenv: when each round ended, and how good the model is."""

import json
import os
import re
import subprocess
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch

from streams.contract.task import Task
from streams.learning import learning
from tests.bench.federation.real.processes import Ended, end_all
from tests.bench.federation.real.stage import Stage
from tests.bench.kafka import ROOT

PYTHON = ROOT / ".tidewheel" / "bench" / "nvflare" / "bin" / "python"  # as the Makefile makes it
WORKSPACE = "NVFLARE_POC_WORKSPACE"
ROUND = re.compile(r"Round \d+ started\.|Finished FedAvg\.")
WORDS = ("--task", "--data", "--weights", "--clients", "--rounds", "--epochs")


def run_flare(
    stage: Stage, folder: Path, clients: list[str], rounds: int, timeout_s: float
) -> Ended:
    """Until the run ends; raises SystemExit where it fails."""
    for name in clients:
        stage.person(name)
    first = safetensors.numpy.load((folder / "first.safetensors").read_bytes())
    weights = folder / "first.pt"
    torch.save({name: torch.from_numpy(np.array(one)) for name, one in first.items()}, weights)
    values = [stage.reference, stage.data, weights, ",".join(clients), rounds]
    values.append(stage.task.training.epochs)
    argv = [str(PYTHON), "-m", "tests.bench.federation.real.flare.job"]
    argv += [text for pair in zip(WORDS, map(str, values), strict=True) for text in pair]
    workspace = folder / "poc"
    env = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", WORKSPACE: str(workspace),
        "PATH": f"{PYTHON.parent}:{os.environ['PATH']}",
    }  # fmt: skip
    log = folder / "flare.log"
    try:
        with log.open("wb") as errors:
            done = subprocess.run(
                argv, env=env, cwd=folder, stdout=subprocess.PIPE, stderr=errors, timeout=timeout_s
            )
    finally:
        end_all(WORKSPACE, folder)
    if done.returncode:
        raise SystemExit(f"NVFlare: {log.read_text(errors='replace')[-2000:]}")
    found = Path(done.stdout.decode().strip().splitlines()[-1]) / "workspace"
    times = round_ends((found / "log.json").read_text().splitlines())
    shares = [float("nan")] * (len(times) - 1) + [_share(stage, folder, found)]
    return Ended([(i, at, share) for i, (at, share) in enumerate(zip(times, shares, strict=True))])


def round_ends(lines: Iterable[str]) -> list[float]:
    """Return when the first round began and when each ended, as the server's log has it."""
    times = []
    for line in lines:
        said = json.loads(line)
        if "FedAvg" in said["name"] and ROUND.search(said["message"]):
            times.append(datetime.strptime(said["asctime"], "%Y-%m-%d %H:%M:%S,%f").timestamp())
    return times


def _share(stage: Stage, folder: Path, found: Path) -> float:
    held = safetensors.numpy.load(stage.heldout(folder).read_bytes())
    return accuracy(stage.task, next(found.rglob("FL_global_model.pt")), held)


def accuracy(task: Task, path: Path, held: dict[str, np.ndarray]) -> float:
    """Of a model as NVFlare's persistor writes it."""
    state = torch.load(path, weights_only=True)["model"]
    model = task.build_model()
    model.load_state_dict({name: torch.as_tensor(value) for name, value in state.items()})
    right = task.correct(learning.predict(model, held["segments"]), held["labels"])
    return float(right.mean())
