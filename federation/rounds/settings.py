"""Settings of one run, read from `flwr run`'s configuration."""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from federation.rounds.collector import Policy
from streams.contract.errors import UsageError
from streams.contract.task import Task

RUN_ID = re.compile(r"[A-Za-z0-9_-]{0,63}")  # also the name of a folder

SMALL, SMALL_LIMIT_S = 20, 300.0
NODE_WAIT_S = 60.0  # for as many nodes as a round needs
BUFFER = 10  # updates per step of fedbuff, as in its paper
OVER_SELECTION = 1.25  # nodes that are asked, for the wanted updates
STALENESS = 4  # rounds by which an update may be late; it counts for less then, see mean.py

Config = Mapping[str, str | int | float | bool]

# Every key that a run understands, with its default; `flwr run` refuses keys that the app does not
# name. Zero and "" mean: what the task says, or the environment.
RUN_CONFIG: dict[str, str | int | float | bool] = {
    "task": "streams.tasks.har:task",
    "state": ".tidewheel",
    "registry": "",  # default: <state>/registry
    "signing-key": "",  # default: <state>/keys/signing.pem
    "kafka": "",
    "rounds": 0,
    "minimum-nodes": 2,
    "round-deadline-s": 60.0,
    "superlink": "",  # HOST:PORT where devices join it; "": none is invited
    "epochs": 0,
    "strategy": "",
    "seed": 0,
    "resume": "",  # the earlier run to resume
}


@dataclass(frozen=True)
class RunSettings:
    """Settings of one run. `runs` is the folder of checkpoints and event logs, `resume` the earlier
    run to resume, "" for none. round_deadline_s is for devices that say nothing of their work."""

    run: str
    rounds: int
    minimum_nodes: int
    node_wait_s: float
    round_deadline_s: float
    epochs: int
    learning_rate: float
    margin: float
    seed: int
    runs: Path
    resume: str = ""

    def seed_of(self, number: int) -> int:
        """Return the seed of a round's random choices and trainings."""
        digest = hashlib.sha256(f"{self.seed}/{number}".encode()).digest()
        return int.from_bytes(digest[:4])

    def limit_s(self, slowest_s: float, devices: int) -> float:
        """Return how long a device at work is waited for: three times the slowest training of the
        run, at least five minutes in a fleet of up to SMALL; slowest_s: 0 before the first update.
        """
        least_s = SMALL_LIMIT_S if devices <= SMALL else self.round_deadline_s
        return max(least_s, 3 * (slowest_s or self.round_deadline_s))


def run_settings(task: Task, run: str, config: Config, runs: Path) -> RunSettings:
    """Return the run's settings; zero means the task's value."""
    training = task.training
    try:
        settings = RunSettings(
            run=run,
            rounds=int(config["rounds"]) or training.rounds,
            minimum_nodes=int(config["minimum-nodes"]),
            node_wait_s=NODE_WAIT_S,
            round_deadline_s=float(config["round-deadline-s"]),
            epochs=int(config["epochs"]) or training.epochs,
            learning_rate=training.learning_rate,
            margin=task.margin,
            seed=int(config["seed"]),
            runs=runs,
            resume=str(config.get("resume") or ""),
        )
    except (KeyError, ValueError, TypeError) as exc:
        raise UsageError(f"run setting: {exc!r}") from exc
    least = {"rounds": settings.rounds, "minimum-nodes": settings.minimum_nodes}
    for name, value in {**least, "round-deadline-s": settings.round_deadline_s}.items():
        if value < 1:
            raise UsageError(f"run setting {name} must be at least 1, not {value}")
    if not RUN_ID.fullmatch(settings.resume):
        raise UsageError(f"run setting resume: {settings.resume!r} is not the id of a run")
    return settings


def policy(task: Task, strategy: str) -> Policy:
    """Return how a round collects its replies with this strategy."""
    if strategy == "fedbuff":
        return Policy(True, target=BUFFER, max_staleness=STALENESS)
    wanted = task.training.devices_per_round
    return Policy(False, math.ceil(wanted * OVER_SELECTION), wanted, STALENESS)
