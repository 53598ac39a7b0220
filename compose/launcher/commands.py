"""What `tidewheel up` is asked for, and the commands of our own that it starts."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from compose.launcher import flower_processes
from compose.launcher.broker import BrokerChoice, Launch
from streams.contract.errors import UsageError
from streams.contract.task import Task
from streams.runtime import option

DEVICES = 6
START_SPEED = 60.0


@dataclass(frozen=True)
class UpOptions:
    """The options of `tidewheel up`; those that several commands share have their help in
    compose.cli.arguments. Without `speed` the replay begins at START_SPEED."""

    task: str
    devices: Annotated[
        int | None,
        option("Number of devices of the task's fleet. Default: 6, or all of fewer."),
    ] = None
    state: Path = Path(".tidewheel")
    kafka: str | None = None
    speed: Annotated[
        float | None,
        option(
            "Replay speed: 1 is real time, 0 as fast as possible. Default: 60, and slower on a "
            "machine whose cores are busy with nothing being learned.",
            ge=0,
        ),
    ] = None
    workers: Annotated[int, option("Number of scoring workers.", ge=1)] = 1
    partitions: int = 4
    rounds: int | None = None
    strategy: str | None = None
    stages: str = "0.5,1"
    secure: Annotated[
        bool, option("TLS to the SuperLink, and a registered key for every SuperNode.")
    ] = False
    minutes: Annotated[
        float | None, option("Stop after so many minutes; default: at Ctrl-C.", ge=0)
    ] = None
    until_closed: Annotated[
        bool,
        option(
            "Stop once every device has answered with a version that has passed its canary: of a "
            "run, or imported."
        ),
    ] = False
    timeout: Annotated[float, option("Seconds after which --until-closed fails.", ge=0)] = 600.0
    mlflow: Annotated[
        str | None,
        option("Write runs to this MLflow tracking server, or folder.", metavar="URI"),
    ] = None
    no_console: Annotated[bool, option("Do not start the live page.")] = False
    json: bool = False

    @property
    def first_speed(self) -> float:
        """The speed of the replay at the start."""
        return START_SPEED if self.speed is None else self.speed


def chosen_devices(task: Task, count: int | None) -> list[str]:
    """The first `count` devices of the task's fleet; None: DEVICES, or all of fewer."""
    fleet = task.device_names("fleet")
    count = min(DEVICES, len(fleet)) if count is None else count
    if not 1 <= count <= len(fleet):
        raise UsageError(
            f"--devices {count}: task {task.name!r} has 1 to {len(fleet)} in its fleet"
        )
    return fleet[:count]


@dataclass(frozen=True)
class Commands:
    """reference: the task's, absolute; ca: the SuperLink's certificate authority."""

    options: UpOptions
    reference: str
    task: Task
    choice: BrokerChoice
    ca: Path | None

    @property
    def environment(self) -> dict[str, str]:
        """How children reach the broker: one of our own speaks plain text, whatever is set."""
        found = {"TIDEWHEEL_KAFKA": self.choice.settings.bootstrap}
        if self.choice.kind != "external":
            found["TIDEWHEEL_KAFKA_SECURITY_PROTOCOL"] = "PLAINTEXT"
        return found

    def worker(self, name: str) -> Launch:
        words = ["worker", self.reference, "--state", str(self.options.state), "--instance", name]
        return self._launch(*words, "--partitions", str(self.options.partitions))

    def edge(self, device: str, key: Path | None = None) -> Launch:
        """key: the device's private key for the SuperLink."""
        words = ["edge", "run", self.reference, "--device", device]
        words += ["--state", str(self.options.state), "--speed", str(self.options.first_speed)]
        words += ["--superlink-ca", str(self.ca)] if self.ca else []
        words += ["--node-key", str(key)] if key else []
        return self._launch(*words, "--stay")

    def console(self, port: int) -> Launch:
        words = ["console", self.reference, "--state", str(self.options.state)]
        return self._launch(*words, "--port", str(port))

    def controller(self, port: int, devices: int) -> Launch:
        """port: the SuperLink's."""
        words = ["controller", self.reference, "--state", str(self.options.state)]
        words += ["--superlink", f"{flower_processes.HOST}:{port}"]
        words += ["--superlink-ca", str(self.ca)] if self.ca else []
        words += ["--min-devices", str(min(2, devices))]
        words += ["--min-events", str(first_pass_events(self.task, devices))]
        words += ["--min-interval", "120", "--stages", self.options.stages]
        if self.options.rounds is not None:
            words += ["--rounds", str(self.options.rounds)]
        if self.options.strategy is not None:
            words += ["--strategy", self.options.strategy]
        if self.options.mlflow is not None:
            words += ["--mlflow", self.options.mlflow]
        return self._launch(*words)

    def _launch(self, *words: str) -> Launch:
        argv = [sys.executable, "-m", "compose.cli.main", *words]
        return Launch(argv, {**self.environment, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"})


def first_pass_events(task: Task, devices: int) -> int:
    """How many judged events a run should wait for: those of 18 windows of every device, so that
    each has labels to learn from and evidence of how far to trust the teacher. Without a teacher
    those with a true label count."""
    judged = 1.0 if task.upload == "segment" else task.training.label_share
    return max(50, int(18 * task.segments_per_window * devices * judged))
