"""The built wheel, installed beside nothing of this tree, does what the documentation says."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from streams.kafka.settings import BrokerSettings

ROOT = Path(__file__).parents[2]
# What an extra is for: the module that needs it, and what must not come with it.
EXTRAS = {
    "edge": ("edge_client.agent", ("torch", "faust-streaming", "flwr", "pyarrow")),
    "worker": ("streams.worker.app", ("flwr", "onnxruntime")),
    "federation": ("federation.server_app", ("faust-streaming", "deltalake")),
    "console": (
        "compose.console.server",
        ("torch", "faust-streaming", "flwr", "deltalake", "duckdb"),
    ),
}
ON_TOP = {
    "edge-train": "edge_client.client_app",
    "batch": "streams.batch.jobs.job",
    "postgresql": "adbc_driver_postgresql.dbapi",
    "dp": "opacus.accountants",
    "trace": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "mqtt": "edge_client.sources.mqtt",
    "s3": "s3fs",
}
UP_S, IDLE_S = 400.0, 60.0
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
DEVICES = """
import json
from tidewheel import load_task
print(json.dumps(load_task("{task}").device_names("fleet")))
"""
pytestmark = pytest.mark.timeout(1200)
# A device is given a key that it trusts, and the name that it has in the task.
FIRST_DEVICE = """
from pathlib import Path
from streams.runtime.trust import create_key
from tidewheel import load_task
create_key(Path(".tidewheel/keys/signing.pem"))
print(load_task("pumps.py:task").device_names("fleet")[0])
"""


class Site:
    """A virtualenv in a folder of its own, where commands run."""

    def __init__(
        self, folder: Path, wheel: Path, extras: str, python: str = sys.executable
    ) -> None:
        self.folder = folder
        folder.mkdir()
        subprocess.run([python, "-m", "venv", folder / "venv"], check=True)
        self.wheel = wheel
        self.install(extras)

    def install(self, extras: str) -> None:
        argv: list[str | Path] = [self.program("pip"), "install", "--quiet", "--constraint"]
        argv += [ROOT / "constraints.txt", f"{self.wheel}[{extras}]"]
        self.run(argv)

    def program(self, name: str) -> Path:
        return self.folder / "venv" / "bin" / name

    @property
    def environ(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "TIDEWHEEL"))}
        return {**kept, "OMP_NUM_THREADS": "1"}

    def run(self, argv: Sequence[str | Path], timeout_s: float = 600.0) -> str:
        done = subprocess.run(
            argv, cwd=self.folder, env=self.environ, capture_output=True, text=True,
            timeout=timeout_s, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, f"{argv}: {done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    @contextmanager
    def running(self, *words: str | Path) -> Iterator[Path]:
        """A command that runs meanwhile; its log."""
        log = self.folder / f"{words[0]}-{time.time_ns()}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [self.program("tidewheel"), *words], cwd=self.folder, env=self.environ,
                stdout=output, stderr=output, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        try:
            yield log
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(120)

    def tidewheel(self, *words: str, timeout_s: float = 120.0) -> str:
        return self.run([self.program("tidewheel"), *words], timeout_s)

    def python(self, text: str) -> str:
        return self.run([self.program("python"), "-c", text])

    def distributions(self) -> set[str]:
        found = json.loads(self.run([self.program("pip"), "list", "--format", "json"]))
        return {one["name"].lower() for one in found}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of the files that are committed or staged, as a release is, in a folder of its own: a
    build here would find what an earlier one has left."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT).decode().split("\0")
    for name in filter(None, tracked):
        (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "tree" / name)
    argv = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder]
    subprocess.run([*argv, folder / "tree"], check=True, cwd=folder)
    (made,) = folder.glob("tidewheel-*.whl")
    return made


@pytest.fixture(scope="module")
def everything(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("all") / "site", wheel, "all,embedded")


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_brings_what_its_part_imports_and_no_more(
    wheel: Path, tmp_path: Path, extra: str
) -> None:
    module, foreign = EXTRAS[extra]
    site = Site(tmp_path / "site", wheel, extra)
    assert re.fullmatch(r"tidewheel \d+\.\d+\.\d+\S*\n", site.tidewheel("--version"))
    where = site.python(f"import {module}; print({module.split('.')[0]}.__file__)")
    assert str(site.folder) in where
    assert site.distributions().isdisjoint(foreign)
    site.run([site.program("pip"), "check"])
    if extra == "edge":
        _device_starts_and_ends(site)


def interpreter(version: str) -> str:
    """A Python of this version, wherever it is."""
    if sys.version.startswith(f"{version}."):
        return sys.executable
    found = [shutil.which(f"python{version}"), *map(str, PYENV.glob(f"{version}.*/bin/python"))]
    for python in filter(None, reversed(found)):
        if subprocess.run([python, "--version"], capture_output=True, check=False).returncode == 0:
            return python
    pytest.skip(f"there is no Python {version}")


def wait_for(condition: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + UP_S
    while not condition():
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(1.0)


def _device_starts_and_ends(site: Site) -> None:
    """Without a broker in reach it waits for its first version, and a signal ends it."""
    site.tidewheel("new", "pumps")
    device = site.python(FIRST_DEVICE).strip()
    argv = [site.program("tidewheel"), "edge", "run", "pumps.py:task", "--device", device]
    log = site.folder / "edge.log"
    with log.open("wb") as output:
        agent = subprocess.Popen(
            [*argv, "--kafka", "127.0.0.1:1"],
            cwd=site.folder, env=site.environ, stdout=output, stderr=output,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + IDLE_S
        while "no Kafka broker answers at 127.0.0.1:1" not in log.read_text():
            assert agent.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
    finally:
        agent.send_signal(signal.SIGTERM)
        code = agent.wait(30)
    assert "Traceback" not in log.read_text()
    assert code == 0, log.read_text()


def test_a_stranger_gets_the_whole_loop_of_a_task_that_tidewheel_new_wrote(
    everything: Site,
) -> None:
    everything.tidewheel("new", "pumps")
    everything.tidewheel("check", "pumps.py:task")
    everything.tidewheel(
        "up", "pumps.py:task", "--devices", "2", "--minutes", "0.7", "--speed", "20", "--json",
        timeout_s=UP_S,
    )  # fmt: skip
    summary = json.loads((everything.folder / ".tidewheel" / "summary.json").read_text())
    assert summary["balanced"]
    produced = sum(line["produced"] for line in summary["devices"])
    assert produced > 0
    counted = everything.tidewheel("query", "SELECT count(*) AS n FROM scores", "--json")
    assert json.loads(counted)["n"] == produced


@pytest.mark.kafka
@pytest.mark.parametrize("version", ["3.11", "3.13"])
def test_a_device_that_is_installed_by_itself_learns_in_a_run(
    everything: Site, wheel: Path, kafka: BrokerSettings, tmp_path: Path, version: str
) -> None:
    """Beside the two devices of `up`, which it shares nothing with but Kafka and its files."""
    site = Site(tmp_path / "device", wheel, "edge-train", interpreter(version))
    everything.tidewheel("new", f"pumps{version[2:]}")
    task = f"pumps{version[2:]}.py:task"
    shutil.copy(everything.folder / f"pumps{version[2:]}.py", site.folder)
    state, on = f"state-{version}", ("--kafka", kafka.bootstrap)
    common = ("--state", state, *on, "--speed", "20")
    with everything.running("up", task, "--devices", "2", *common) as log:
        wait_for(lambda: "rollout   a new version" in log.read_text(), log)
        names = json.loads(everything.python(DEVICES.format(task=task)))
        key = everything.folder / state / "keys" / "signing.pub"
        model = next((everything.folder / state / "registry" / "models").glob("1-*.twa"))
        words = ("edge", "run", task, "--device", names[2], "--trust", key, "--model", model)
        with site.running(*words, *common) as own_log:

            def admitted() -> bool:
                told = everything.tidewheel("tail", task, "rounds", "--last", "1000", "--json", *on)
                steps = [json.loads(line) for line in told.splitlines()]
                return any(s.get("kind") == "admitted" and s["device"] == names[2] for s in steps)

            wait_for(lambda: names[2] in everything.tidewheel("status", task, *on), own_log)
            everything.tidewheel("train", task, *on)
            wait_for(admitted, own_log)
        assert "Traceback" not in own_log.read_text()
    assert site.distributions().isdisjoint({"pyarrow", "faust-streaming", "deltalake"})


def test_every_other_extra_installs_beside_the_rest(everything: Site) -> None:
    everything.install(",".join(ON_TOP))
    for extra, module in ON_TOP.items():
        assert everything.python(f"import {module}; print('{extra}')") == f"{extra}\n"
    everything.run([everything.program("pip"), "check"])
