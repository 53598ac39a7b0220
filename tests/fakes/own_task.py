"""The tiny task under a name of its own, so that its topics collide with nobody's."""

import uuid
from pathlib import Path


def own_task(folder: Path, source: str = "recorded") -> str:
    """Write `task.py` into `folder`; the reference that every command takes."""
    name = f"tiny-{uuid.uuid4().hex[:8]}"
    (folder / "task.py").write_text(
        "import dataclasses\n"
        "from tests.fakes.tiny_task import task as tiny\n"
        f"task = dataclasses.replace(tiny, name={name!r}, source={source!r})\n"
    )
    return f"{folder / 'task.py'}:task"
