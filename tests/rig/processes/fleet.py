"""The real `tidewheel` command as a process, and looking at what it leaves: processes and a store.

Every process that a test starts carries the test's mark in its environment and so do its
descendants, whatever their command lines say: `marked` finds them all.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from compose.reports.summary import DeviceLine
from streams.contract.accounting import IntervalSet
from tests.rig.asked import asked
from tests.rig.processes import polling
from tests.rig.processes.running import start
from tests.rig.servers.kafka import with_kafka

TINY = Path(__file__).parents[1] / "made_up" / "tiny_task.py"
MARK = "TIDEWHEEL_TEST_MARK"


def until(condition: Callable[[], object], what: str, timeout_s: float = 120.0) -> None:
    """As everywhere, with time for a whole fleet."""
    polling.until(condition, what, timeout_s, 0.1)


def without_kafka() -> dict[str, str]:
    """An environment in which only the embedded broker is left."""
    environ = {k: v for k, v in with_kafka().items() if k != "KAFKA_HOME"}
    folders = environ.get("PATH", os.defpath).split(os.pathsep)
    kept = [f for f in folders if not (Path(f) / "kafka-server-start.sh").exists()]
    return {**environ, "PATH": os.pathsep.join(kept)}


@dataclass
class Place:
    """A folder with a copy of the tiny task in it, away from every package, and a state folder."""

    folder: Path
    environ: dict[str, str]
    cache: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        shutil.copy(TINY, self.folder / "machines.py")

    @property
    def task(self) -> str:
        return f"{self.folder / 'machines.py'}:task"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def store(self) -> Path:
        return self.state / "store"

    def start(self, name: str, *words: str | Path) -> "Running":
        """A `tidewheel` command; its output goes to `<name>.out` and `<name>.err`."""
        return self.start_module(name, "compose.cli.main", *words)

    def start_module(self, name: str, module: str, *words: str | Path) -> "Running":
        """As `python -m`."""
        out, err = self.folder / f"{name}.out", self.folder / f"{name}.err"
        argv = [sys.executable, "-m", module, *words]
        process = start(argv, out, self._environ(), err=err, cwd=self.folder)
        self.processes.append(process)
        return Running(process, out, err)

    def up(self, name: str, *words: str, task: str | None = None) -> "Running":
        """A whole fleet."""
        head = ["up", task or self.task, "--state", str(self.state), "--json"]
        return self.start(name, *head, "--no-console", *words)

    def run(self, *command: str | Path, **env: str) -> str:
        """Another command's standard output; it has to succeed."""
        done = subprocess.run(
            [str(word) for word in command],
            cwd=self.folder,
            env={**self._environ(), **env},
            capture_output=True,
            text=True,
            timeout=120 * polling.SLOWEST,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def tidewheel(self, *words: str | Path) -> str:
        return self.run(sys.executable, "-m", "compose.cli.main", *words)

    def _environ(self) -> dict[str, str]:
        return {**self.environ, "TIDEWHEEL_CACHE": str(self.cache), MARK: self.mark}

    # --- processes ------------------------------------------------------------------------------

    def marked(self) -> dict[int, list[str]]:
        """The living processes of this place: pid and command line."""
        found = {}
        wanted = f"{MARK}={self.mark}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    words = (folder / "cmdline").read_bytes().decode().split("\0")
                    found[int(folder.name)] = words
            except OSError:
                continue
        return found

    def find(self, *words: str) -> int | None:
        """The one process whose command line has all of `words`, in that order, side by side."""
        run = "\0".join(words)
        found = [pid for pid, line in self.marked().items() if run in "\0".join(line)]
        found = [pid for pid in found if _parent(pid) not in found]  # it may be forking just now
        assert len(found) < 2, f"{words}: {found}"
        return found[0] if found else None

    def kill(self, *words: str) -> int:
        """SIGKILL to the process found by `words`; its pid."""
        pid = self.find(*words)
        assert pid is not None, words
        os.kill(pid, signal.SIGKILL)
        return pid

    def show_stacks(self) -> None:
        """Have the devices' agents write the stacks of their threads to their logs."""
        for pid, words in self.marked().items():
            if "\0edge\0run\0" in "\0".join(words):
                with suppress(ProcessLookupError):  # it has just ended
                    os.kill(pid, signal.SIGUSR1)

    def logs(self) -> str:
        """The ends of all logs."""
        paths = [*self.folder.glob("*.err"), *sorted(self.state.glob("logs/*.log"))]
        texts = [f"--- {path.name}\n{path.read_text(errors='replace')[-6000:]}" for path in paths]
        return "\n".join(texts)

    def nothing_is_left(self) -> None:
        until(lambda: not self.marked(), f"all processes are gone: {self.marked()}", 20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        """Leave nothing behind, even when the test has failed."""
        while left := self.marked():
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            for process in self.processes:
                process.poll()
            time.sleep(0.05)
        for process in self.processes:
            process.wait(10)

    # --- the store ------------------------------------------------------------------------------

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return asked(self.store, sql)

    def scored(self, device: str = "%") -> int:
        rows = self.rows(f"select count(*) from scores where device like '{device}'")
        return int(rows[0][0]) if rows else 0


@dataclass
class Running:
    """One `tidewheel` process."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    @property
    def said(self) -> str:
        return self.err.read_text(errors="replace")

    @property
    def told(self) -> str:
        """All that a run has said that failed."""
        return f"{self.said}\n{self.out.read_text(errors='replace')}"

    def until_said(self, text: str, timeout_s: float = 120.0) -> None:
        def said() -> bool:
            assert self.process.poll() is None or text in self.said, self.said[-3000:]
            return text in self.said

        until(said, f"{text!r}: {self.said[-1500:]}", timeout_s)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def ends(self, timeout_s: float) -> int:
        """Its exit code, as `until` waits for it."""
        timeout_s *= polling.SLOWEST
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still there after {timeout_s:.0f} s: {self.said}") from None

    def summary(self) -> dict[str, Any]:
        """What `up --json` printed, which is all that it printed."""
        found = json.loads(self.out.read_text())
        assert isinstance(found, dict)
        return found


def check_account(place: Place, summary: dict[str, Any]) -> None:
    """Every event of every device is in the store once or among the drops, and none is missing."""
    assert summary["balanced"] is True
    for entry in summary["devices"]:
        line = DeviceLine(**entry)
        assert line.balanced
        assert line.pending == 0
        where = f"device = '{line.device}' and epoch = '{line.epoch}'"
        seqs = [seq for (seq,) in place.rows(f"select seq from scores where {where}")]
        assert len(seqs) == len(set(seqs)) == line.scored
        known = IntervalSet((seq, seq) for seq in sorted(seqs))
        for first, last in place.rows(f"select first, last from drops where {where}"):
            known.add(first, last)
        assert list(known) == ([(0, line.produced - 1)] if line.produced else [])
    repeated = "select device, epoch, seq from scores group by all having count(*) > 1"
    assert place.rows(repeated) == []
    epochs = place.rows("select distinct device, epoch from scores order by all")
    assert epochs == sorted((entry["device"], entry["epoch"]) for entry in summary["devices"])


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None
