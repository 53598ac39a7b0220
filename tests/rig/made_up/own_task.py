"""The tiny task under a name of its own, so that its topics collide with nobody's."""

import uuid
from pathlib import Path

TINY = f"{Path(__file__).parent / 'tiny_task.py'}:task"  # for processes that do not know `tests`


def own_task(
    folder: Path,
    source: str = "recorded",
    idle_close_s: float = 2.0,
    window: str = "Tumbling(5)",
    answer_by: str = "device",
) -> str:
    """Write `task.py` into `folder`; the reference that every command takes."""
    name = f"tiny-{uuid.uuid4().hex[:8]}"
    (folder / "task.py").write_text(
        "import dataclasses\n"
        "from tidewheel import Count, Session, Sliding, Tumbling, load_task\n"
        f"tiny = load_task({TINY!r})\n"
        f"task = dataclasses.replace(tiny, name={name!r}, source={source!r}, "
        f"idle_close_s={idle_close_s}, window={window}, "
        f"answer_by={answer_by!r})\n"
    )
    return f"{folder / 'task.py'}:task"
