"""Shards as tasks of a Ray cluster of two nodes: the same rows, the same ledger, over deaths."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.runtime.key_files import create_key
from tests.compose.cli.test_cli import TINY, fails, tidewheel
from tests.edge_client.models import artifact, plain
from tests.streams.batch.support import good_rows, rows_of, write_parquet

CLUSTER = """
import sys
from ray.cluster_utils import Cluster
made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
made.add_node(num_cpus=1)
made.wait_for_nodes()
print(made.address, flush=True)
sys.stdin.read()
made.shutdown()
"""
DIES = """
import os, signal, sys
from pathlib import Path
from tidewheel import load_task
task = load_task({tiny!r})
place = Path(__file__).parent
if "default_worker.py" in sys.argv[0]:  # a process of Ray
    with (place / "pids").open("a") as file:
        file.write(f"{{os.getpid()}}\\n")
    left = sorted(place.glob("death-*"))
    if left:
        left[0].unlink()
        os.kill(os.getpid(), signal.SIGKILL)
"""
FILES, ROWS = 10, 20


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two nodes on this machine, a processor each; the address of their head."""
    environ = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    environ["HOME"] = str(tmp_path_factory.mktemp("home"))  # Ray keeps a token there
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, env=environ, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    try:
        assert address, "no cluster"
        yield address
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """A command that scores ten files, with a task that may kill workers of Ray."""
    (tmp_path / "task.py").write_text(DIES.format(tiny=TINY))
    (tmp_path / "model.twa").write_bytes(artifact(create_key(tmp_path / "k.pem"), plain(1)))
    for n in range(FILES):
        write_parquet(tmp_path / "in" / f"{n}.parquet", good_rows(ROWS, n))
    named = ["--model", "model.twa", "--trust", "k.pub", "--id", "event", "--json"]
    return ["score", f"{tmp_path / 'task.py'}:task", "in", *named, "--to"]


def expected() -> list[str]:
    return [row["event"] for n in range(FILES) for row in good_rows(ROWS, n)]


def test_a_worker_that_dies_costs_its_shards_attempt_and_nothing_else(
    tmp_path: Path, cluster: str, command: list[str]
) -> None:
    (tmp_path / "death-0").touch()
    done = tidewheel(*command, "out", "--ray", cluster, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["shards"] == FILES
    assert found["attempts"] == FILES + 1
    assert [row["id"] for row in rows_of(tmp_path / "out")] == expected()
    logs = tidewheel("jobs", "logs", "out.job", folder=tmp_path)
    assert logs.stdout.count("its process has died") == 1
    pids = set((tmp_path / "pids").read_text().split())
    assert len(pids) > 1  # the one that died, and others
    alone = tidewheel(*command, "alone", "--processes", "1", folder=tmp_path)
    assert alone.returncode == 0, alone.stderr
    assert rows_of(tmp_path / "alone") == rows_of(tmp_path / "out")
    assert set((tmp_path / "pids").read_text().split()) == pids  # nothing more was done by Ray


def test_a_job_on_ray_that_is_killed_goes_on_without_it(
    tmp_path: Path, cluster: str, command: list[str]
) -> None:
    point = {"TIDEWHEEL_FAILPOINT": "score-step-5:3"}
    killed = tidewheel(*command, "out", "--ray", cluster, folder=tmp_path, **point)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = tidewheel("jobs", "resume", "out.job", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["id"] for row in rows_of(tmp_path / "out")] == expected()


def test_a_shard_that_kills_every_worker_fails_the_job(
    tmp_path: Path, cluster: str, command: list[str]
) -> None:
    for n in range(100):
        (tmp_path / f"death-{n}").touch()
    done = tidewheel(*command, "out", "--ray", cluster, folder=tmp_path)
    assert done.returncode == 1
    assert "3 processes have died of shard" in done.stderr
    for mark in tmp_path.glob("death-*"):
        mark.unlink()
    done = tidewheel("jobs", "resume", "out.job", "--ray", cluster, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["id"] for row in rows_of(tmp_path / "out")] == expected()


def test_a_cluster_that_is_not_there_is_one_line(tmp_path: Path, command: list[str]) -> None:
    done = tidewheel(*command, "out", "--ray", "127.0.0.1:1", folder=tmp_path)
    fails(done, 2, "--ray 127.0.0.1:1: ")
