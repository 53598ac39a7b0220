"""Handing a federated run to the SuperLink with Flower's own `flwr` command, and asking how it is.

The command reads the connection's address from `config.toml` in its FLWR_HOME, so that a user's
own ~/.flwr is neither read nor written. `compose.flower` writes that folder and the app's.
"""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from streams.contract.disk import write_atomic
from streams.contract.errors import ProcessFailed

ConfigValue = str | int | float | bool

COMMAND_TIMEOUT_S = 60.0
COMPLETED = "finished:completed"
UNKNOWN = "unknown"  # the SuperLink has no such run: its database is another one


@dataclass(frozen=True)
class Submission:
    """How `flwr` reaches one SuperLink: the program, the app's folder, the connection's name."""

    program: str
    app: Path
    connection: str
    env: Mapping[str, str] = field(default_factory=dict)

    def run_command(self, config: Path) -> list[str]:
        """`flwr run` with the run's settings in the TOML file `config`."""
        head = [self.program, "run", str(self.app), self.connection]
        return [*head, "--run-config", str(config), "--format", "json"]

    def list_command(self) -> list[str]:
        """`flwr list` of the newest runs: asked for one that it has not it only fails."""
        return [self.program, "list", self.connection, "--limit", "100", "--format", "json"]

    def start(self, config: Mapping[str, ConfigValue], folder: Path) -> str:
        """Submit a run and return its id; ProcessFailed says why there is none.

        The settings pass through a file in `folder`: on a command line a quote in a path would
        end the value.
        """
        path = folder / "run-config.toml"
        write_atomic(path, toml(config).encode())
        return parse_run(self._call(self.run_command(path)))

    def runs(self) -> dict[str, str]:
        """The newest runs and their statuses: `pending`, `starting`, `running`,
        `finished:<how>`."""
        return parse_list(self._call(self.list_command()))

    def status(self, run: str) -> str:
        """One run's status; UNKNOWN where it is not among the newest."""
        return self.runs().get(run, UNKNOWN)

    def _call(self, argv: Sequence[str]) -> str:
        try:
            done = subprocess.run(
                argv,
                env={**os.environ, **self.env},
                capture_output=True,
                text=True,
                timeout=COMMAND_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise ProcessFailed(f"`flwr {argv[1]}` cannot be run: {exc}") from exc
        # Flower reports a failure as JSON on standard output and exits 1.
        return done.stdout or json.dumps({"success": False, "error-message": done.stderr})


def toml(config: Mapping[str, ConfigValue]) -> str:
    """Flat settings as TOML."""
    return "".join(f"{_toml(key)} = {_toml(value)}\n" for key, value in config.items())


def _toml(value: ConfigValue) -> str:
    """JSON's notation is TOML's too but for pairs of surrogates and the delete character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def parse_run(text: str) -> str:
    """The run id in the output of `flwr run --format json`."""
    answer = _answer(text, "run")
    if not answer.get("run-id"):
        raise ProcessFailed("`flwr run` gave no run id")
    return str(answer["run-id"])


def parse_list(text: str) -> dict[str, str]:
    """Runs and statuses in the output of `flwr list --format json`, in its order."""
    runs = _answer(text, "list").get("runs")
    rows = [row for row in runs if isinstance(row, dict)] if isinstance(runs, list) else []
    return {str(row.get("run-id")): str(row.get("status")) for row in rows}


def _answer(text: str, verb: str) -> dict[str, object]:
    start = text.find("{")
    try:
        answer = json.loads(text[start:]) if start >= 0 else None
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise ProcessFailed(f"`flwr {verb}` gave no JSON: {_one_line(text)}")
    if not answer.get("success"):
        raise ProcessFailed(f"`flwr {verb}` failed: {_one_line(str(answer.get('error-message')))}")
    return answer


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300] or "it said nothing"
