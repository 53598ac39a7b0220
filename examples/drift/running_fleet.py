"""The fleet of the demo: `tidewheel up` as a process, and what its topics show."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from compose.cli.arguments import broker_of
from compose.launcher.state_dir import StateDir
from edge_client.ipc import ask, socket_path
from examples.drift import har_remounted
from examples.drift.analysis import Recovery
from streams.contract.errors import BrokerUnavailable, ProcessFailed
from streams.contract.topics import topic_name
from streams.contract.work import AgentRequest
from streams.fleet.following import TOPICS
from streams.kafka.reader import Reader

TASK = f"{Path(har_remounted.__file__).resolve()}:task"  # for processes in other folders
DEVICES = len(har_remounted.FLEET)


class RunningFleet:
    """Runs until the end of the block, where it is given its time to drain; `code` is how it ended.
    What happens is told by `say`."""

    def __init__(
        self,
        state: Path,
        speed: float,
        timeout_s: float,
        recovery: Recovery,
        say: Callable[[str], None],
    ) -> None:
        self._state, self._speed, self._recovery, self._say = state, speed, recovery, say
        self._deadline = time.monotonic() + timeout_s
        self._told: set[str] = set()
        self._reader: Reader | None = None
        self.log = StateDir(state).logs / "up.log"
        self.code = 0

    def __enter__(self) -> Self:
        words = ["up", TASK, "--devices", str(DEVICES), "--speed", str(self._speed)]
        words += ["--state", str(self._state), "--stages", "0.1,0.3,1"]  # one device is the first
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._say(f"fleet: tidewheel {' '.join(words)}, which writes {self.log}")
        with self.log.open("ab") as output:
            self._up = subprocess.Popen(
                [sys.executable, "-m", "compose.cli.main", *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._say("the fleet is drained and ended")
        if self._reader is not None:
            self._reader.close()
        with contextlib.suppress(ProcessLookupError):
            self._up.send_signal(signal.SIGINT)
        self.code = self._up.wait()

    def connect(self) -> None:
        """Wait until its broker answers; ProcessFailed when it does not in time."""
        while self._reader is None:
            self._check("the fleet starts")
            with contextlib.suppress(BrokerUnavailable):
                topics = [topic_name(self._recovery.task, name) for name in TOPICS]
                self._reader = Reader(broker_of(self._state, None), topics, timeout_s=1.0)
            time.sleep(0.2)

    def pace(self, devices: Sequence[str], speed: float) -> None:
        """Let the devices replay at another speed."""
        for device in devices:
            socket = socket_path(StateDir(self._state).device(device))
            ask(socket, AgentRequest(op="pace", speed=speed))

    def until(self, happened: Callable[[], Any], what: str) -> None:
        """Read on until it has happened; ProcessFailed when it does not in time."""
        assert self._reader is not None
        while not happened():
            self._check(what)
            try:
                messages = self._reader.poll(0.25)
            except BrokerUnavailable:
                continue
            for message in messages:
                self._recovery.take(message)
            for moment in self._recovery.moments():
                if moment.what not in self._told:
                    self._told.add(moment.what)
                    self._say(f"{moment.seconds:+7.1f} s  {moment.what}")
            for text in set(failed_fits(self.log.parent)) - self._told:
                self._told.add(text)
                self._say(text)

    def _check(self, what: str) -> None:
        if self._up.poll() is not None:
            raise ProcessFailed(f"tidewheel up ended before {what}")
        if time.monotonic() > self._deadline:
            raise ProcessFailed(f"not in time: {what}")


def failed_fits(logs: Path) -> Iterator[str]:
    """Yield what devices have written in their logs of input adapters that were not fitted."""
    for path in sorted(logs.glob("edge-*.log")):
        lines = path.read_text(errors="replace").splitlines()
        yield from (f"{path.stem}: {line}" for line in lines if "no adapter of " in line)
