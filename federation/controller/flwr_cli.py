"""Flower's `flwr` command: submits federated runs to the SuperLink and queries their status.

The command reads the SuperLink's address from `config.toml` in its FLWR_HOME, so that the user's
~/.flwr is neither read nor written. `compose.launcher.flower_processes` says what that folder and
the app's hold; only the controller that leads writes them.
"""

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from streams.contract.errors import ProcessFailed
from streams.runtime.files import write_atomic

ConfigValue = str | int | float | bool

COMMAND_TIMEOUT_S = 60.0
COMPLETED = "finished:completed"
FAILED = "finished:failed"  # its ServerApp
STOPPED = "finished:stopped"  # by `flwr stop`
UNKNOWN = "unknown"  # the SuperLink does not have the run: it has another database


@dataclass(frozen=True)
class Flwr:
    """The `flwr` command for one SuperLink: the program, the connection's name, the environment."""

    program: str
    connection: str
    env: Mapping[str, str] = field(default_factory=dict)

    def call(self, verb: str, *words: str) -> dict[str, object]:
        """Return the answer of `flwr <verb> <words> --format json`; raise ProcessFailed on failure.
        The connection is one of the words."""
        try:
            done = subprocess.run(
                [self.program, *verb.split(), *words, "--format", "json"],
                env={**os.environ, **self.env},
                capture_output=True,
                text=True,
                timeout=COMMAND_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise ProcessFailed(f"`flwr {verb}` cannot be run: {exc}") from exc
        # Flower reports a failure as JSON on standard output and exits 1.
        text = done.stdout or json.dumps({"success": False, "error-message": done.stderr})
        return parse_answer(text, verb)


@dataclass(frozen=True)
class Submission:
    """How runs are started and watched: the command and the app's folder. ready: whether the
    SuperLink answers. files: what the command reads, the app's settings and the connection."""

    flwr: Flwr
    app: Path
    ready: Callable[[], bool] = lambda: True
    files: Mapping[Path, bytes] = field(default_factory=dict)

    def write(self) -> None:
        """Write the files. The state folder's controllers and its users share them, so a process
        that does not lead must not call this."""
        for path, data in self.files.items():
            write_atomic(path, data)

    def start(self, config: Mapping[str, ConfigValue], folder: Path) -> str:
        """Write the files, submit a run and return its id; raise ProcessFailed on failure.

        The settings are passed in a file in `folder`: on the command line a quote in a path would
        end the value.
        """
        self.write()
        path = folder / "run-config.toml"
        write_atomic(path, toml(config).encode())
        words = [str(self.app), self.flwr.connection, "--run-config", str(path)]
        return run_id(self.flwr.call("run", *words))

    def runs(self) -> dict[str, str]:
        """Return the newest runs and their statuses: `pending`, `starting`, `running`,
        `finished:<how>`."""
        # `flwr list` of one unknown run only fails, so list all.
        answer = self.flwr.call("list", self.flwr.connection, "--limit", "100")
        return {str(row.get("run-id")): str(row.get("status")) for row in rows(answer, "runs")}


def toml(config: Mapping[str, ConfigValue]) -> str:
    """Return flat settings as TOML."""
    return "".join(f"{_toml(key)} = {_toml(value)}\n" for key, value in config.items())


def _toml(value: ConfigValue) -> str:
    """Return a value in JSON notation, which is also TOML except for surrogate pairs and the delete
    character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def run_id(answer: Mapping[str, object]) -> str:
    """Return the run's id from the answer of `flwr run`."""
    if not answer.get("run-id"):
        raise ProcessFailed("`flwr run` returned no run id")
    return str(answer["run-id"])


def rows(answer: Mapping[str, object], name: str) -> list[dict[str, object]]:
    """Return a table of an answer; empty if there is none of this name."""
    found = answer.get(name)
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def parse_answer(text: str, verb: str) -> dict[str, object]:
    """Return the JSON that `flwr` printed; raise ProcessFailed, in one line, if it reports a
    failure."""
    start = text.find("{")
    try:
        answer = json.loads(text[start:]) if start >= 0 else None
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise ProcessFailed(f"`flwr {verb}` returned no JSON: {_one_line(text)}")
    if not answer.get("success"):
        raise ProcessFailed(f"`flwr {verb}` failed: {_one_line(str(answer.get('error-message')))}")
    return answer


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300] or "no output"
