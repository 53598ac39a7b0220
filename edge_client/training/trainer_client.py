"""The agent's side of the trainer: starts the child when a run is joined or there is work,
sends it one request at a time."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from edge_client.ipc import receive_frame, send_frame
from edge_client.samples.samples import Samples
from streams.contract.errors import MalformedRecord, ProcessFailed
from streams.contract.work import OWN, PERSONAL, TrainerJob, WorkReply, WorkRequest


@dataclass(frozen=True)
class MachineConditions:
    """Whether the device may train: on power or charged enough, and not too hot, by psutil's
    sensors. One that cannot be read does not prevent it: most machines have no battery.

    minimum_battery: the charge, 0 to 1, that a device on battery needs; maximum_celsius: of the
    hottest sensor.
    """

    minimum_battery: float = 0.3
    maximum_celsius: float = 80.0

    def against_training(self) -> str | None:
        """Return why the device must not train now, for a person; None if it may."""
        return self._battery() or self._heat()

    def _battery(self) -> str | None:
        battery = _read("sensors_battery")
        if battery is None or battery.power_plugged:
            return None
        share = battery.percent / 100
        if share >= self.minimum_battery:
            return None
        return f"on battery at {share:.0%}, below {self.minimum_battery:.0%}"

    def _heat(self) -> str | None:
        sensors = _read("sensors_temperatures") or {}
        hottest = max((s.current for found in sensors.values() for s in found), default=None)
        if hottest is None or hottest <= self.maximum_celsius:
            return None
        return f"{hottest:.0f} degrees Celsius, above {self.maximum_celsius:.0f}"


def _read(name: str):  # type: ignore[no-untyped-def]
    """Return psutil's reading; None if the system has none."""
    import psutil  # here: the first answer does not wait for it

    try:
        return getattr(psutil, name)()
    except (AttributeError, OSError, RuntimeError):
        return None


log = logging.getLogger(__name__)

_START_S = 60.0
STOP_S, KILL_S = 5.0, 0.5
YIELDS_S = 30.0
NO_PLUGINS = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}  # that torch looks for, .15 s


@dataclass
class Trainer:
    """The owner of the child process.

    `served` returns the verified weights of a version, None if the device does not have it.
    held_back: why the last training was not started, or was stopped. yields_s: how long a round
    waits for a step of a personal training.
    """

    reference: str
    device: str
    folder: Path
    samples: Samples
    conditions: MachineConditions | None = None
    served: Callable[[str], bytes | None] = lambda _model: None
    held_back: str | None = None
    busy: bool = False
    yields_s: float = YIELDS_S
    _yields: bool = False  # whether the current request stops for a round
    _ended: bool = False
    _killed: bool = False  # the child at the current request, by the agent
    _child: "subprocess.Popen[bytes] | None" = None
    _connection: socket.socket | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._stop_file = self.folder / "trainer.stop"
        for left in self.folder.glob("tmp*.rows"):  # of a killed agent
            left.unlink()

    def work(self, request: WorkRequest, weights: bytes) -> tuple[WorkReply, bytes]:
        """Run a request in the child; its errors are returned as the reply's `error`.

        A personal training is stopped for a round, and killed where that takes longer than
        `yields_s`.
        """
        if self._yields:
            self._request_stop()
        while not self._lock.acquire(timeout=self.yields_s):
            if self._yields:
                self._kill()
        try:
            self._stop_file.unlink(missing_ok=True)
            if self._ended:  # checked after the unlink, so that either we or the child see a stop
                return WorkReply(device=self.device, error="trainer: the agent is stopping"), b""
            if request.op != "evaluate" and self._against():
                return WorkReply(device=self.device, error=f"conditions: {self.held_back}"), b""
            self._killed = False
            self.busy, self._yields = True, request.run == PERSONAL
            try:
                return self._with_rows(request, weights)
            except (OSError, MalformedRecord, ProcessFailed) as exc:
                self._reap()
                kind = "" if isinstance(exc, ProcessFailed) else f"{type(exc).__name__}: "
                error = f"trainer: {kind}{exc}"
                return WorkReply(device=self.device, error=error), b""
            finally:
                self.busy = self._yields = False
        finally:
            self._lock.release()

    def prepare(self) -> None:
        """Start the child, unless it works: it has torch then when the first request comes."""
        if self.conditions and self.conditions.against_training():
            return
        if not self._lock.acquire(blocking=False):
            return
        try:
            if not self._ended:
                self._connected()
        except OSError as exc:
            log.warning("%s: the trainer does not start: %s", self.device, exc)
        finally:
            self._lock.release()

    def _with_rows(self, request: WorkRequest, weights: bytes) -> tuple[WorkReply, bytes]:
        wanted = request.part or request.op == "evaluate"
        served = self.served(request.base) if wanted else None
        if request.part and served is None:
            error = f"base: {request.base}, of which a part was sent, is not on this device"
            return WorkReply(device=self.device, error=error), b""
        with shared_file(self.folder) as (file, name), shared_file(self.folder) as (base, path):
            if request.op == "adapt":
                self.samples.write_adapter_rows(file)
            else:
                self.samples.write_training_rows(file)
            file.flush()
            base.write(served or b"")
            base.flush()
            return self._exchange(request, weights, name, path if served else "")

    def _against(self) -> bool:
        self.held_back = self.conditions.against_training() if self.conditions else None
        return self.held_back is not None

    def watch(self) -> None:
        """Stop a training between two steps if conditions forbid it now; call every few seconds.

        The reply has the weights trained until then.
        """
        if self.busy and self._against():
            self._request_stop()

    def interrupt(self) -> None:
        """Stop a training between two steps: its reply is not wanted any more."""
        if self.busy:
            self._request_stop()

    def _request_stop(self) -> None:
        """Ask the child to stop; on a full disk a training only ends by its time budget."""
        with contextlib.suppress(OSError):
            self._stop_file.touch()

    def _exchange(
        self, request: WorkRequest, weights: bytes, rows: str, served: str
    ) -> tuple[WorkReply, bytes]:
        job = TrainerJob(
            device=self.device,
            request=request,
            samples=rows,
            stop=str(self._stop_file),
            own=str(self.folder / OWN),
            served=served,
        )
        wait_s = max(request.time_budget_s + _START_S, request.limit_s)
        try:
            return _asked(self._connected(), job, weights, wait_s)
        except (BrokenPipeError, ConnectionResetError, MalformedRecord) as exc:
            code = self._reap()
            if code or self._killed:
                raise ProcessFailed(self._ending(code)) from exc
            # it ended for want of work just as the request came, and may take long to exit
            return _asked(self._connected(), job, weights, wait_s)

    def _ending(self, code: int | None) -> str:
        """Return how the child ended at work, for a person."""
        if self._killed:
            return "its process was killed, as it did not stop in time"
        if code is None or code >= 0:
            return f"its process ended with code {code}"
        memory = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
        names = {int(each): each.name for each in signal.Signals}
        return f"its process was killed ({names.get(-code, f'signal {-code}')}){memory}"

    def _connected(self) -> socket.socket:
        """Return the socket to a running child; start one if needed."""
        if self._child is not None and self._child.poll() is None and self._connection is not None:
            return self._connection
        self._reap()
        ours, theirs = socket.socketpair()
        with theirs:
            self._child = self._start(theirs)
        self._connection = ours
        return ours

    def _start(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "edge_client.training"]
        return subprocess.Popen(
            [*command, self.reference, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", **NO_PLUGINS},
        )

    def _kill(self) -> None:
        """Kill the child, if there is one."""
        if (child := self._child) is not None:
            self._killed = True
            child.kill()

    def _reap(self) -> int | None:
        """End the child; return its exit code, None if it had to be killed."""
        code = None
        if self._connection is not None:
            self._connection.close()  # the child ends when it reads the end of the stream
            self._connection = None
        if self._child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._child.wait(timeout=1.0)
            if code is None:
                self._child.kill()
                self._child.wait()
            self._child = None
        return code

    def stop(self, wait_s: float = STOP_S) -> None:
        """Stop a training between two steps and end the child, for good; kill it where a step takes
        longer than `wait_s`, as on a busy machine, where it lets all others go first."""
        self._ended = True
        self._request_stop()
        while not self._lock.acquire(timeout=wait_s):
            wait_s = KILL_S  # one that has just been started is killed too
            self._kill()
        self._reap()
        self._lock.release()
        self._stop_file.unlink(missing_ok=True)


def _asked(
    connection: socket.socket, job: TrainerJob, weights: bytes, wait_s: float
) -> tuple[WorkReply, bytes]:
    connection.settimeout(wait_s)
    send_frame(connection, job.encode(), weights)
    header, body = receive_frame(connection)
    return WorkReply.decode(header), body


@contextlib.contextmanager
def shared_file(folder: Path) -> Iterator[tuple[IO[bytes], str]]:
    """Yield a temporary file and the name by which the child can open it.

    The file is in memory if the system supports it: a full disk then does not prevent training, and
    raw data is not written a second time.
    """
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("tidewheel-job"), "wb") as file:
            yield file, f"/proc/{os.getpid()}/fd/{file.fileno()}"
    else:
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".rows") as file:
            yield file, file.name
