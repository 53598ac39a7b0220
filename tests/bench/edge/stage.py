"""Where devices are measured: a broker, the virtualenvs of [edge] and [edge-train], a folder with a
signed model for every run, and the processes that are started there."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edge_client.control.ipc import ask
from edge_client.control.socket_server import socket_path
from streams.contract.errors import Retryable
from streams.contract.task import load_task
from streams.contract.work import AgentReply, AgentRequest
from tests.bench import machine
from tests.bench.edge.answers.driver import DEVICE
from tests.bench.kafka import ROOT, Kafka

NOWHERE = "127.0.0.1:9"  # no broker is there
WAIT_S, STOP_S = 60.0, 30.0
ONCE_S = 30.0  # of the patience for a quiet machine, before one run
# Of this process alone: what is installed is compiled, and a device that compiles takes 4 MB more.
OURS = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")


class DeviceEnded(Exception):
    """A device's process ended or did not get on; the text has the end of its log."""


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    slices: int  # of idleness and of training, in turn
    slices_s: Mapping[int, float]  # by segments a second, 0 for full speed
    p99_answers: int  # that are needed to claim a p99
    starts: int
    repeats: int
    segments: int  # events that are pumped
    predictions: int


FULL = Size(2, {50: 10.0, 800: 18.0, 0: 7.0}, 20_000, 5, 3, 150_000, 500_000)
QUICK = Size(1, {50: 4.0, 800: 4.0, 0: 2.0}, 1_000, 1, 1, 2_000, 5_000)


@dataclass
class Device:
    """A process with a device's agent in it, and its folder."""

    process: subprocess.Popen[bytes]
    folder: Path
    log: Path
    began: float  # time.monotonic() before the process was started

    @property
    def pid(self) -> int:
        return self.process.pid

    def socket(self) -> Path:
        return socket_path(self.folder)

    def wait(self, condition: Callable[[], bool], what: str, pause_s: float = 0.05) -> None:
        """Until the condition holds; DeviceEnded when the process ends or time runs out."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                end = self.log.read_text(errors="replace")[-2000:]
                raise DeviceEnded(f"not reached: {what}: {end}")
            time.sleep(pause_s)

    def asked(self) -> AgentReply | None:
        """What the agent says of itself; None while it is still starting."""
        try:
            return ask(self.socket(), AgentRequest(op="state"))
        except Retryable:
            return None

    def produced(self) -> int:
        answer = self.asked()
        return answer.state.produced if answer is not None and answer.state is not None else 0

    def first_answer_s(self) -> float:
        """From the start of the process until its first event is synced in the spool."""
        spool = self.folder / "spool"

        def there() -> bool:
            return any(path.stat().st_size for path in spool.glob("*.seg"))

        self.wait(there, "a first event in the spool", pause_s=0.001)
        return time.monotonic() - self.began

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass
class Stage:
    """Where all runs take place, one at a time."""

    folder: Path
    models: Path  # a folder as model.write_models makes it
    kafka: Kafka
    edge: Path  # the Python of a virtualenv with what [edge] brings
    edge_train: Path
    size: Size
    patience_s: float  # for a quiet machine, in all
    highest_load: float = 0.0
    runs: int = 0

    def new_folder(self, name: str, reference: str) -> Path:
        """A folder for one run, with the files of the task's model in it."""
        self.runs += 1
        folder = self.folder / "runs" / f"{self.runs:02d}-{name}"
        shutil.copytree(self.models / load_task(reference).name, folder)
        return folder

    @contextmanager
    def quietly(self) -> Iterator[machine.Load]:
        """A run: it begins on a quiet machine, and others' use of it is watched."""
        patience_s = min(self.patience_s, ONCE_S)
        self.patience_s -= machine.wait_until_quiet(self.kafka.pid, patience_s)
        with machine.watched(self.kafka.pid) as load:
            yield load
        self.highest_load = max(self.highest_load, load.others)

    @contextmanager
    def device(self, argv: list[str], folder: Path, device_folder: Path) -> Iterator[Device]:
        """A device's process until the block ends."""
        log = folder / "log"
        environ = {name: text for name, text in os.environ.items() if name not in OURS}
        with log.open("wb") as output:
            began = time.monotonic()
            process = subprocess.Popen(argv, stdout=output, stderr=output, cwd=ROOT, env=environ)
        device = Device(process, device_folder, log, began)
        try:
            yield device
        finally:
            if process.poll() is None:
                device.end()

    @contextmanager
    def edge_run(self, python: Path, task: str, *words: str) -> Iterator[Device]:
        """`tidewheel edge run` of a virtualenv."""
        folder = self.new_folder("run", task)
        name = words[words.index("--device") + 1] if "--device" in words else DEVICE
        argv = [str(python.parent / "tidewheel"), "edge", "run", task, "--state", str(folder)]
        argv += ["--model", str(folder / "model.twa"), "--trust", str(folder / "signing.pub")]
        if "--device" not in words:
            argv += ["--device", name]
        with self.device([*argv, *words], folder, folder / "devices" / name) as device:
            yield device


@contextmanager
def full_disk(folder: Path, megabytes: int = 48) -> Iterator[Callable[[], None]]:
    """A file system of its own at `folder`, for which we have to be root; calling what is yielded
    fills it to the last byte."""
    folder.mkdir(parents=True)
    options = f"size={megabytes}m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)

    def fill() -> None:
        with contextlib.suppress(OSError), (folder / "balloon").open("ab", buffering=0) as balloon:
            for size in (1 << 20, 4096, 1):
                with contextlib.suppress(OSError):
                    while balloon.write(b"\0" * size):
                        pass

    try:
        yield fill
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
