"""An untrained teacher's artifact with a reference for drift: as fast as a trained one."""

from pathlib import Path

from streams.contract.task import Task
from streams.drift.reference import MINIMUM, WINDOWS, Reference
from tests.streams.worker import support


def write_teacher(task: Task, folder: Path) -> None:
    """`teacher.twa`, and `key.pub` with the public key that signed it."""
    folder.mkdir(parents=True, exist_ok=True)
    made, _ = support.write_teacher(task, folder, drift=reference(task).encode())
    made.rename(folder / "teacher.twa")


def reference(task: Task) -> Reference:
    """A reference of the shape that the pilot makes."""
    return support.reference(task, minimum=MINIMUM, windows=WINDOWS)
