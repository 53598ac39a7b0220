"""Devices in virtualenvs that hold what an extra brings, and what they say of themselves."""

import contextlib
import shutil
import sys
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import psutil

from benchmarks.frame import Bench
from benchmarks.support.device_tasks import DEVICE, HOP_S, RATES, TASKS
from benchmarks.support.processes import ROOT, family, module, running, until, usage
from edge_client.ipc import ask, call, socket_path
from streams.contract.documents import DeviceState
from streams.contract.errors import Retryable
from streams.contract.task import load_task
from streams.contract.topics import topic_specs
from streams.contract.work import AgentRequest, Label, WorkRequest
from streams.kafka.admin import ensure_topics
from tests.rig.processes.distributions import needed

PROGRAM = "#!{python}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n"


def site(bench: Bench, extra: str) -> Path:
    """Return the Python of a virtualenv that links to the files that tidewheel[extra] needs and to
    this tree."""
    folder = bench.folder / f"site-{extra}"
    python = folder / "bin" / "python"
    if python.exists():
        return python
    venv.create(folder, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / version / "site-packages"
    for one in needed(extra).values():
        for top in {path.parts[0] for path in one.files or [] if path.parts[0] != ".."}:
            link, target = packages / top, Path(str(one.locate_file(top)))
            if top != "__pycache__" and target.exists() and not link.exists():
                link.symlink_to(target)
    (packages / "tree.pth").write_text(f"{ROOT}\n")
    scripts = [s for one in needed(extra).values() for s in one.entry_points]
    scripts += distribution("tidewheel").entry_points
    for script in scripts:
        if script.group == "console_scripts":
            program = folder / "bin" / script.name
            text = PROGRAM.format(python=python, module=script.module, function=script.attr)
            program.write_text(text)
            program.chmod(0o755)
    return python


def state(bench: Bench, upload: str) -> Path:
    """Return a new state folder with a model in it; topics are there too."""
    models = bench.folder / f"model-{upload}"
    if not models.exists():  # in a process of its own: this one would share its pages with devices
        module("benchmarks.support.model_files", TASKS[upload], str(models))
        ensure_topics(bench.kafka, topic_specs(load_task(TASKS[upload]).id, len(RATES)))
    folder = bench.place("device")
    shutil.copytree(models, folder)
    return folder


def words(bench: Bench, folder: Path, upload: str, rate: float, name: str = DEVICE) -> list[str]:
    """Return `edge run` at `rate` segments a second."""
    found = ["edge", "run", TASKS[upload], "--device", name, "--state", str(folder)]
    found += ["--model", str(folder / "model.twa"), "--trust", str(folder / "signing.pub")]
    found += ["--kafka", bench.kafka.bootstrap, "--speed", str(rate * HOP_S)]
    return found


@dataclass
class Device:
    pid: int
    folder: Path
    first_s: float  # from its start until its first event is synced in the spool

    @property
    def socket(self) -> Path:
        return socket_path(self.folder)

    def said(self) -> DeviceState | None:
        with contextlib.suppress(Retryable):
            return ask(self.socket, AgentRequest(op="state")).state
        return None

    def samples(self) -> int:
        found = self.said()
        return found.samples or 0 if found is not None else 0

    def children(self, name: str) -> list[int]:
        """Return its processes whose command lines contain `name`."""
        found = []
        for process in family(self.pid)[1:]:
            with contextlib.suppress(psutil.Error):
                if name in " ".join(process.cmdline()):
                    found.append(process.pid)
        return found

    def cpu_s(self) -> float:
        return sum(usage(process.pid).cpu_s for process in family(self.pid))

    def train(self, task_ref: str, weights: bytes) -> None:
        """Fine-tune once on all that the device has."""
        task = load_task(task_ref)
        everything = Label(first_us=0, last_us=2**54, label=[1.0])
        ask(self.socket, AgentRequest(op="label", labels=[everything]))
        t = task.training
        request = WorkRequest(
            op="train", run="1", round=1, task=task.name, task_version=task.version, base="1-b",
            epochs=t.epochs, batch_size=t.batch_size, learning_rate=t.learning_rate,
        )  # fmt: skip
        reply, _ = call(self.socket, request, weights, 120.0)
        if reply.error is not None:
            raise Retryable(reply.error)


@contextmanager
def device(argv: Sequence[str], state: Path, name: str = DEVICE) -> Iterator[Device]:
    """A device's process, once it has answered."""
    folder, log = state / "devices" / name, state / f"{name}.log"
    began = time.monotonic()
    with running(argv, log, {"PYTHONPATH": ""}) as process:

        def answered() -> bool:
            return any(path.stat().st_size for path in (folder / "spool").glob("*/*.seg"))

        until("a first event in the spool", answered, 60, process, log, 0.001)
        yield Device(process.pid, folder, time.monotonic() - began)


@contextmanager
def edge_run(
    bench: Bench, extra: str, upload: str, rate: float, name: str = DEVICE
) -> Iterator[Device]:
    folder = state(bench, upload)
    program = str(site(bench, extra).parent / "tidewheel")
    with device([program, *words(bench, folder, upload, rate, name)], folder, name) as one:
        yield one
