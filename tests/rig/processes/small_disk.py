"""A real file system of 1 MiB that a test may fill to the last byte."""

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

DISK_BYTES = 1 << 20


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of DISK_BYTES, unless the test names another size. Who is not root, and may not mount
    one, runs the test in a namespace of its own."""
    folder, size = tmp_path / "disk", getattr(request, "param", DISK_BYTES)
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        test = f"{request.node.path}::{request.node.name}"
        command = ["unshare", "--map-root-user", "--mount", sys.executable, "-m", "pytest", test]
        again = subprocess.run(command, check=False, capture_output=True, text=True)
        assert again.returncode == 0, again.stdout + again.stderr
        pytest.skip("not root here: passed in a namespace of its own")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Somebody else's file that takes all that is left."""
    path = disk / "filler"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        for size in (65_536, 4096, 512, 1):
            with contextlib.suppress(OSError):
                while True:
                    os.write(fd, bytes(size))
        with pytest.raises(OSError, match="No space") as caught:
            os.write(fd, b"x")
        assert caught.value.errno == errno.ENOSPC
    finally:
        os.close(fd)
    return path
