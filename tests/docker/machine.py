"""Docker on this machine, and the images that compose.yaml names, made without an image registry.

TIDEWHEEL_IMAGES=public takes the public images in place of the ones made here.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.rig.processes.workers import until

REPOSITORY = Path(__file__).parents[2]
BASE = "local/tidewheel-base:latest"
PACKAGES = (
    "ca-certificates,openjdk-21-jre-headless,libssl3t64,libffi8,libsqlite3-0,libbz2-1.0,liblzma5,"
    "libreadline8t64,zlib1g,libncursesw6,nginx-light,prometheus"
)
FOLDERS = {"var/lib/kafka/data": 1000, "prometheus": 65534}  # a volume takes their owner


def run(*words: str | Path, **named: object) -> str:
    done = subprocess.run([str(w) for w in words], text=True, capture_output=True, **named)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{words}: {done.stderr[-3000:]}"
    return str(done.stdout)


def answers() -> bool:
    return subprocess.run(["docker", "info"], capture_output=True).returncode == 0


@contextmanager
def docker(folder: Path) -> Iterator[None]:
    """A Docker that answers: the machine's, or one of our own until the end."""
    if answers():
        yield
        return
    with (folder / "dockerd.log").open("wb") as log:
        daemon = subprocess.Popen(["dockerd"], stdout=log, stderr=log)
    try:
        until(answers, "dockerd answers", 60)
        yield
    finally:
        daemon.terminate()
        daemon.wait(60)


def images(folder: Path) -> dict[str, str]:
    """Settings of compose.yaml for images that are here."""
    if os.environ.get("TIDEWHEEL_IMAGES") == "public":
        return {}
    if not run("docker", "images", "--quiet", BASE).strip():
        base_image(folder)
    wheels = folder / "wheels"
    extras = "edge-train,worker,federation,console,s3,mqtt,trace"
    run(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--constraint", "constraints.txt",
        "--wheel-dir", wheels, f".[{extras}]", "setuptools>=77", cwd=REPOSITORY,
    )  # fmt: skip
    shutil.rmtree(REPOSITORY / "build", ignore_errors=True)
    names = ("PYTHON_IMAGE", "KAFKA_IMAGE", "NGINX_IMAGE", "PROMETHEUS_IMAGE")
    return {**dict.fromkeys(names, BASE), "WHEELS": str(wheels), "PIP_OPTIONS": "--no-index"}


def base_image(folder: Path) -> None:
    """One image for all: Debian with Java, nginx and Prometheus, this Python, and $KAFKA_HOME."""
    root = folder / "root"
    run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "trixie", root, mirror())
    python = Path(sysconfig.get_config_var("prefix"))
    skip = ("lib/python3.11/site-packages/*", "lib/python3.11/test", "lib/python3.11/config-*")
    shutil.copytree(python, root / "opt/python", symlinks=True, ignore=_matching(python, skip))
    packages = root / "opt/python/lib/python3.11/site-packages"
    for name in ("pip", "setuptools", "_distutils_hack"):
        if (found := python / "lib/python3.11/site-packages" / name).exists():
            shutil.copytree(found, packages / name)
    shutil.copytree(os.environ["KAFKA_HOME"], root / "opt/kafka")
    (root / "etc/ld.so.conf.d/python.conf").write_text("/opt/python/lib\n")
    run("chroot", root, "ldconfig")
    for name, owner in FOLDERS.items():
        (root / name).mkdir(parents=True)
        os.chown(root / name, owner, owner)
    path = "/opt/python/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as tar:
        run("docker", "import", "--change", f"ENV PATH={path}", "-", BASE, stdin=tar.stdout)
    shutil.rmtree(root)


def mirror() -> str:
    """The Debian mirror that apt is set up with."""
    for path in (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list")):
        for line in path.read_text().splitlines() if path.exists() else ():
            words = line.split()
            if words[:1] == ["URIs:"]:
                return words[1]
            if words[:1] == ["deb"]:
                return next(word for word in words if "://" in word)
    raise AssertionError("apt has no mirror")


def _matching(top: Path, patterns: tuple[str, ...]):  # type: ignore[no-untyped-def]
    def ignore(folder: str, names: list[str]) -> list[str]:
        inside = Path(folder).relative_to(top)
        return [
            name
            for name in names
            if name.endswith(".pyc") or any((inside / name).match(p) for p in patterns)
        ]

    return ignore
