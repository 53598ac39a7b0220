"""No key is in the repository: a state folder that lies in it is easily committed."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
KEY = re.compile(rb"^-----BEGIN [A-Z ]*PRIVATE KEY-----$", re.MULTILINE)


def test_no_private_key_is_committed() -> None:
    tracked = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT).decode().split("\0")
    files = [path for path in (ROOT / name for name in tracked if name) if path.is_file()]
    assert len(files) > 500
    assert [str(path) for path in files if KEY.search(path.read_bytes())] == []
