"""Workers have names of their own, which they have again after a restart or a kill."""

import errno
import fcntl
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from streams.contract.errors import UsageError
from streams.worker.settings import NAME, hold, torch_device

HOLD = """
import sys
from pathlib import Path
from streams.worker.settings import hold
name, handle = hold(Path(sys.argv[1]))
print(name, flush=True)
sys.stdin.read()
"""


def test_names_are_unique_and_stable(tmp_path: Path) -> None:
    first, one = hold(tmp_path)
    second, two = hold(tmp_path)
    assert first != second
    assert NAME.fullmatch(first)
    one.close()
    again, three = hold(tmp_path)
    assert again == first
    two.close()
    three.close()


def test_a_killed_worker_leaves_its_name(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        with pytest.raises(UsageError, match=f"a worker named {name} is running"):
            hold(tmp_path, name)
        process.send_signal(signal.SIGKILL)
        process.wait()
    found, handle = hold(tmp_path)
    handle.close()
    assert found == name


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_given: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    name, handle = hold(tmp_path, "w1")
    handle.close()
    assert name == "w1"
    assert "give every worker its own --instance" in caplog.text


def test_a_name_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--instance a/b"):
        hold(tmp_path, "a/b")


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a CUDA device")
def test_cuda_where_there_is_none_is_refused_and_auto_takes_the_cpu() -> None:
    assert [torch_device(word, "--device") for word in ("cpu", "auto")] == ["cpu", "cpu"]
    with pytest.raises(UsageError, match=r"--device cuda: torch .* finds no CUDA device: see that"):
        torch_device("cuda", "--device")
    with pytest.raises(UsageError, match="--device gpu: write auto, cpu or cuda"):
        torch_device("gpu", "--device")
