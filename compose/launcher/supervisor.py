"""Starts the local processes, restarts what dies, and takes everything down.

Every process leads a process group and writes to `<logs>/<name>.log`, or to our output. It is asked
to end with SIGTERM and, after its time, with SIGKILL, as a whole group. A log file that has become
too large is moved to `<name>.log.1`, and that to `.2`.

On Linux the kernel kills it when we are killed: it asks for that itself (FOLLOW), after it was
started and with one thread, looks whether we are still there, and becomes the command. The kernel
does so when the thread ends that started it, so only the main thread may start one.
"""

import contextlib
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from compose.launcher.broker import Launch
from streams.contract.errors import ProcessFailed, UsageError
from streams.runtime.files import write_atomic
from streams.runtime.process import rotate

log = logging.getLogger("tidewheel.up")

QUICK_S = 5.0  # a process that lives shorter than this has failed to start
ROTATE_S = 10.0  # between two looks at the sizes of log files
QUICK_DEATHS = 6  # in a row, before we give up

LOOKED = "the task can work"  # a line of the preparation for `up`, not for a person

FOLLOW = """\
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as exc:
    sys.exit(f"{sys.argv[2]}: {exc.strerror}")
"""


@dataclass
class Child:
    """One supervised process."""

    name: str
    launch: Launch
    stop_s: float
    process: subprocess.Popen[bytes]
    started: float
    quick_deaths: int = 0
    restart_at: float | None = None
    essential: bool = True


@dataclass
class Supervisor:
    """Children by name, in the order in which they were started; `restarts` also of those that
    have been stopped since. logs: their folder, None: our own output."""

    logs: Path | None
    children: dict[str, Child] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)
    _rotate_at: float = 0.0

    def start(
        self, name: str, launch: Launch, stop_s: float = 10.0, *, essential: bool = True
    ) -> None:
        """What is not `essential` and does not stay up is given up."""
        process, now = self._spawn(name, launch), time.monotonic()
        self.children[name] = Child(name, launch, stop_s, process, now, essential=essential)

    def log_path(self, name: str) -> Path:
        assert self.logs is not None
        return self.logs / f"{name}.log"

    def last_words(self, name: str) -> str:
        """The last line that a process wrote."""
        if self.logs is None:
            return "its last lines are above"
        try:
            lines = self.log_path(name).read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1][:300] if lines else "it wrote nothing"

    def check(self) -> list[str]:
        """Restart what has died; return a line for each death. ProcessFailed when one that is
        essential will not stay up."""
        said = []
        now = time.monotonic()
        if now >= self._rotate_at and self.logs is not None:
            self._rotate_at = now + ROTATE_S
            for name in self.children:
                rotate(self.log_path(name))
        for child in list(self.children.values()):
            if child.restart_at is not None:
                if now >= child.restart_at:
                    self._restart(child)
                continue
            code = child.process.poll()
            if code is not None:
                self._kill_group(child)  # what it may have left behind
                said.append(self._bury(child, code, now))
        return said

    def _bury(self, child: Child, code: int, now: float) -> str:
        """Return a line about a death; the child is started again, or given up."""
        quick = now - child.started < QUICK_S
        child.quick_deaths = child.quick_deaths + 1 if quick else 1
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        if child.quick_deaths < QUICK_DEATHS:
            child.restart_at = now + min(0.2 * 2**child.quick_deaths, 10.0)
            return f"{child.name} {how}; it is started again"
        where = "" if self.logs is None else f" (see {self.log_path(child.name)})"
        words = self.last_words(child.name)
        why = f"{child.name} {how} {child.quick_deaths} times: {words}{where}"
        if child.essential:
            raise ProcessFailed(why)
        del self.children[child.name]
        return f"{why}; it is given up, everything else goes on"

    def _restart(self, child: Child) -> None:
        child.process = self._spawn(child.name, child.launch)
        child.started = time.monotonic()
        child.restart_at = None
        self.restarts[child.name] = self.restarts.get(child.name, 0) + 1

    def began_again_us(self, name: str) -> float:
        """Return when a process was started again, microseconds since 1970; 0 if it never was,
        infinite while it is down."""
        child = self.children.get(name)
        if child is None:
            return 0.0
        if child.restart_at is not None or child.process.poll() is not None:
            return math.inf
        began_s = time.time() - time.monotonic() + child.started
        return began_s * 1e6 if name in self.restarts else 0.0

    def terminate(self, *names: str) -> None:
        """Ask processes to end; stop() waits for them."""
        for name in names:
            child = self.children.get(name)
            if child is not None and child.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.process.pid, signal.SIGTERM)

    def stop(self, *names: str) -> None:
        """End processes, all at the same time, and forget them."""
        self.terminate(*names)
        for name in names:
            child = self.children.pop(name, None)
            if child is None:
                continue
            try:
                child.process.wait(child.stop_s)
            except subprocess.TimeoutExpired:
                log.warning("%s did not end in %.0f s and is killed", name, child.stop_s)
            self._kill_group(child)
            child.process.wait()

    def stop_all(self) -> None:
        """End everything, the last started first."""
        names = list(reversed(self.children))
        brokers = [name for name in names if name == "broker"]
        self.stop(*[name for name in names if name != "broker"])
        self.stop(*brokers)

    def _kill_group(self, child: Child) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.process.pid, signal.SIGKILL)

    def _spawn(self, name: str, launch: Launch) -> subprocess.Popen[bytes]:
        if shutil.which(launch.argv[0], path=launch.env.get("PATH")) is None:
            raise ProcessFailed(f"{name} cannot be started: there is no {launch.argv[0]}")
        if self.logs is not None:
            self.logs.mkdir(parents=True, exist_ok=True)
        with nullcontext() if self.logs is None else self.log_path(name).open("ab") as output:
            try:
                return subprocess.Popen(
                    followed(launch.argv),
                    env={**os.environ, **launch.env},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # a Ctrl-C in the terminal is ours to pass on
                )
            except OSError as exc:
                raise ProcessFailed(f"{name} cannot be started: {exc}") from exc


def followed(argv: Sequence[str]) -> list[str]:
    """Return the command line of a process that ends with this one."""
    if sys.platform != "linux":
        return list(argv)
    assert threading.current_thread() is threading.main_thread()
    return [sys.executable, "-I", "-S", "-c", FOLLOW, str(os.getpid()), *argv]


def prepared(
    reference: str,
    state: Path,
    logs: Path,
    looked: Callable[[], None],
    meanwhile: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    """Look at the task and make its models in a process (compose.launcher.preparation) that waits
    in between for `looked`: nothing is on disk before. Then `meanwhile` is called. Raises its
    error."""
    argv = [sys.executable, "-m", "compose.launcher.preparation", reference, str(state)]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            followed(argv),
            stdin=pipe,
            stdout=pipe,
            stderr=errors,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line == f"{LOOKED}\n":
                    looked()
                    process.stdin.write("\n")
                    process.stdin.flush()
                    meanwhile()
                else:
                    say(line.rstrip("\n"))
            code = process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        errors.seek(0)
        text = errors.read()
    last = text.strip().rpartition("\n")[2]
    if code == UsageError.exit_code:
        raise UsageError(last)
    if text:  # what libraries say
        write_atomic(logs / "preparation.log", text.encode())
    if code != 0:
        why = last or f"its process ended with code {code}"
        raise ProcessFailed(f"the models could not be made: {why}")
