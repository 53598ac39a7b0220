"""What `pip install tidewheel[EXTRA]` brings, made of what is installed here, without a network.

The distributions that an extra needs are followed through their metadata. Their sizes add up to the
size of the install; a virtualenv that links to their files and no others is where a device's
process is measured: a package of the development install (pyarrow imports pandas where it finds
it) would cost memory that a device does not have.
"""

import sys
import tomllib
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
PROGRAM = """#!{python}
import sys
from compose.cli.main import main
sys.exit(main())
"""


def needed(*extras: str) -> dict[str, Distribution]:
    """The installed distributions that tidewheel[extras] brings, by their names; our own
    requirements are those of this tree."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    todo = [("tidewheel", extra) for extra in ("", *extras)]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        if name == "tidewheel":
            texts = optional[extra] if extra else project["dependencies"]
        else:
            found[name] = distribution(name)
            texts = found[name].requires or []
        for requirement in map(Requirement, texts):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                name = canonicalize_name(requirement.name)
                todo += [(name, more) for more in ("", *requirement.extras)]
    return found


def size_bytes(found: Distribution) -> int:
    """Of its files as installed, without what Python compiles of them."""
    paths = [Path(str(found.locate_file(path))) for path in found.files or []]
    return sum(path.stat().st_size for path in paths if path.suffix != ".pyc" and path.is_file())


def make_site(folder: Path, *extras: str) -> Path:
    """A virtualenv in `folder` with what tidewheel[extras] brings and this source tree; its
    Python."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "lib" / version / "site-packages"
    for one in needed(*extras).values():
        for top in {path.parts[0] for path in one.files or [] if path.parts[0] != ".."}:
            link, target = site / top, Path(str(one.locate_file(top)))
            if top != "__pycache__" and target.exists() and not link.exists():
                link.symlink_to(target)
    (site / "tree.pth").write_text(f"{ROOT}\n")
    program = folder / "bin" / "tidewheel"
    program.write_text(PROGRAM.format(python=python))
    program.chmod(0o755)
    return python
