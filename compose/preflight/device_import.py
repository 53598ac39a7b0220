"""Importing a task file as a device does: without torch."""

import subprocess
import sys

from streams.contract.errors import TaskError
from streams.contract.task import load_task
from streams.segments.findings import Finding
from streams.segments.survey import own_line

WITHIN_S = 60.0


def import_finding(reference: str) -> Finding | None:
    """Return where the file of a task imports torch; None if it does not. A separate process
    imports it, in which torch cannot be imported."""
    command = [sys.executable, "-m", "compose.preflight.device_import", reference]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S)
    except subprocess.TimeoutExpired:
        return None  # it was imported here before: the machine is busy
    if done.returncode != 3:
        return None
    text = f"importing the file needs torch ({done.stdout.splitlines()[-1]})"
    advice = "import torch inside of `build_model`: devices import this file without it"
    return Finding("error", "imports", text, advice)


def main() -> None:
    sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it fails
    try:
        load_task(sys.argv[1])
    except TaskError as exc:
        cause = exc.__cause__
        if isinstance(cause, ImportError) and (cause.name or "").partition(".")[0] == "torch":
            sys.stdout.write(f"{own_line(cause).removeprefix(', ') or cause}\n")
            sys.exit(3)


if __name__ == "__main__":
    main()
