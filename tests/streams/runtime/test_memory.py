"""Pages that only a start has read are given back, written ones are kept; and onnxruntime sends no
telemetry."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from streams.runtime import process
from tests.rig.processes.forks import ROOT

SMAPS = """\
1000-3000 r--p 00000000 fe:00 11 /lib/a.so
Rss: 8 kB
Anonymous: 0 kB
AnonHugePages: 0 kB
VmFlags: rd mr mw me
3000-4000 r-xp 00002000 fe:00 11 /lib/a b.so
Anonymous: 0 kB
4000-5000 r--p 00003000 fe:00 11 /lib/a.so
Anonymous: 4 kB
5000-6000 rw-p 00004000 fe:00 11 /lib/a.so
Anonymous: 0 kB
6000-7000 r--s 00000000 fe:00 12 /data/shared
Anonymous: 0 kB
7000-8000 rw-p 00000000 00:00 0 [heap]
Anonymous: 0 kB
8000-9000 r--p 00000000 00:00 0
Anonymous: 0 kB
9000-a000 r-xp 00000000 00:00 0 [vdso]
Anonymous: 0 kB
9800-9900 r--p 00000000 fe:00 11 /lib/swapped-out.so
Anonymous: 0 kB
Swap: 4 kB
SwapPss: 4 kB
a000-b000 r-xp 00000000 fe:00 13 /lib/last.so (deleted)
Anonymous: 0 kB
Swap: 0 kB
"""

# A process with an agent's libraries: its resident bytes of files before and after, and whether
# the libraries still work.
PROCESS = """
from pathlib import Path
import numpy as np, onnxruntime
import edge_client.process
from streams.runtime.process import give_back
from streams.contract.zstd import zstd
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile"))

before = resident()
give_back()
after = resident()
key = Ed25519PrivateKey.generate()
key.public_key().verify(key.sign(b"x"), b"x")
assert "CPUExecutionProvider" in onnxruntime.get_available_providers()
numbers = np.arange(1000.0).tobytes()
assert zstd.decompress(zstd.compress(numbers)) == numbers
print(before, after)
"""

# Free memory below a chunk that is in use, which glibc alone would keep: anonymous kB in use, freed
# and trimmed.
HEAP = """
from pathlib import Path
from streams.runtime.process import trim

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("RssAnon"))

chunks = [b"x" * 50_000 for _ in range(1000)]
found = [resident()]
del chunks[:-1]
found.append(resident())
trim()
print(*found, resident())
"""


def test_mappings_are_given_back_that_are_of_a_file_private_read_only_and_unwritten() -> None:
    found = list(process.unwritten(SMAPS.splitlines()))
    assert found == [(0x1000, 0x3000), (0x3000, 0x4000), (0xA000, 0xB000)]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells what is resident")
def test_libraries_take_less_than_half_after_the_start_and_still_work() -> None:
    argv = [sys.executable, "-c", PROCESS]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert after < before / 2


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells what is resident")
def test_free_memory_below_what_is_in_use_goes_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HEAP], cwd=ROOT, capture_output=True, text=True, check=True
    )
    used, freed, trimmed = map(int, done.stdout.split())
    assert freed > used - 20_000, "the last chunk keeps the heap"
    assert trimmed < used - 40_000


@pytest.mark.parametrize("chosen", [None, "0"])
def test_onnxruntime_keeps_no_reports_unless_its_user_wants_them(
    tmp_path: Path, chosen: str | None
) -> None:
    program = "import os, streams.learning.onnx_model; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environ = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    environ.pop("ORT_DISABLE_TELEMETRY", None)
    if chosen is not None:
        environ["ORT_DISABLE_TELEMETRY"] = chosen
    argv = [sys.executable, "-c", program]
    done = subprocess.run(
        argv, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == (chosen or "1")
    # With reports, whether this file comes depends on the build and the machine.
    assert chosen or not any(tmp_path.rglob("onnxruntime.db*"))
