"""Who may know whom: imports are read from the source, also those in functions, and held against
what is declared here. What a process must not load is looked for in a fresh one."""

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("streams", "federation", "edge_client", "compose", "tidewheel", "examples")

# Rooms, bottom up: each may import those that it names, and what they may import.
SHARED = {
    "streams.contract": (),
    "streams.kafka": ("streams.contract",),
    "streams.runtime": ("streams.contract",),
    "streams.segments": ("streams.contract",),
    "streams.learning": ("streams.contract", "streams.runtime"),
}
COMMON = tuple(SHARED)
ROOMS: dict[str, tuple[str, ...]] = {
    **SHARED,
    # the store only when it is read, commands and batch jobs only when something is scored
    "tidewheel": (*COMMON, "streams.worker.store", "compose.cli"),
    "streams.tasks": ("streams.contract", "streams.runtime"),
    "streams.fleet": ("streams.contract", "streams.kafka"),
    "streams.batch": ("streams.contract", "streams.runtime"),
    "streams.batch.sources": ("streams.batch", "streams.segments"),
    "streams.batch.output_files": ("streams.batch.sources",),
    "streams.batch.output_tables": ("streams.batch.output_files",),
    "streams.batch.jobs": ("streams.batch.output_tables", "streams.learning"),
    "streams.worker.metrics": (),
    "streams.worker.windows.tumbling": ("streams.contract",),
    "streams.worker.windows.cut": ("streams.worker.windows.tumbling",),
    "streams.worker.windows.partition": ("streams.worker.windows.cut",),
    "streams.worker.windows": (*COMMON, "streams.worker.windows.partition"),
    "streams.worker.store": (*COMMON, "streams.worker.metrics", "streams.worker.windows"),
    "streams.worker.commit": (*COMMON, "streams.worker.store"),
    "streams.worker": (*COMMON, "streams.fleet", "streams.worker.commit"),
    "edge_client.spool": ("streams.contract", "streams.runtime"),
    "edge_client.uplink": (*COMMON, "edge_client.spool"),
    "edge_client.samples": (*COMMON, "edge_client.spool"),
    "edge_client.sources": (*COMMON, "edge_client.samples"),
    "edge_client.inference": (*COMMON, "edge_client.sources"),
    "edge_client.ipc": ("streams.contract",),
    "edge_client.training": (*COMMON, "edge_client.inference", "edge_client.ipc"),
    "edge_client": (*COMMON, "edge_client.uplink", "edge_client.training"),
    "federation.admission": ("streams.contract", "streams.learning"),
    "federation.evaluation": ("federation.admission", "streams.kafka"),
    "federation.registry": ("streams.contract", "streams.kafka", "streams.runtime"),
    "federation.bootstrap": (*COMMON, "federation.evaluation", "federation.registry"),
    "federation.rollout": ("federation.registry", "streams.fleet"),
    "federation.rounds.aggregator": ("federation.admission", "streams.runtime"),
    "federation.rounds.strategies": ("federation.rounds.aggregator",),
    "federation.rounds.privacy": ("federation.rounds.strategies",),
    "federation.rounds": (*COMMON, "federation.rounds.privacy", "federation.bootstrap"),
    "federation.controller": (*COMMON, "streams.fleet", "federation.rounds", "federation.rollout"),
    "federation": (*COMMON, "federation.rounds", "federation.controller"),
    "compose.reports": (
        *COMMON, "streams.fleet", "federation.registry", "streams.batch.jobs",
        "streams.worker.store",
    ),
    "compose.console": ("compose.reports", "federation.rollout"),
    "compose.preflight": (*COMMON, "federation.bootstrap"),
    "compose.launcher.certificates": COMMON,
    "compose.launcher.node_registry": (*COMMON, "federation.controller"),
    "compose.launcher": (
        "compose.preflight", "compose.reports", "compose.launcher.certificates",
        "compose.launcher.node_registry", "federation", "edge_client",
    ),
    "compose.cli": (
        "compose.console", "compose.launcher", "streams.batch.jobs", "streams.worker", "federation",
        "edge_client",
    ),
    "compose": ("compose.cli",),
    "examples.batch": ("compose", "tidewheel"),
    "examples.digits": ("streams.runtime", "streams.tasks", "tidewheel"),
    "examples.recommendation": ("tidewheel",),
    "examples.drift": ("compose", "streams.tasks", "tidewheel"),
}  # fmt: skip

PROBE = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""


@cache
def loaded(*modules: str) -> frozenset[str]:
    """All modules that importing `modules` loads."""
    command = [sys.executable, "-c", PROBE, *modules]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True, cwd=ROOT
    )
    return frozenset(json.loads(done.stdout))


def sources() -> dict[str, Path]:
    """All modules of ours, packages left out."""
    return {
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.stem not in ("__init__", "__main__")
        and path.parent.name != "producer"  # a program that knows nothing of ours
    }


def room_of(module: str) -> str | None:
    """The innermost room of one of our modules; None for a package above the rooms."""
    parts = module.split(".")
    for n in range(len(parts), 0, -1):
        if ".".join(parts[:n]) in ROOMS:
            return ".".join(parts[:n])
    return None


@cache
def reachable(room: str) -> frozenset[str]:
    """`room` and all that it may load."""
    found = {room}
    for name in ROOMS[room]:
        found |= reachable(name)
    return frozenset(found)


def libraries(modules: frozenset[str], *names: str) -> set[str]:
    return {name for name in names if name in modules}


MODULES = sorted(sources())


def test_every_module_is_in_a_room() -> None:
    assert [module for module in MODULES if room_of(module) is None] == []


def test_a_room_imports_what_it_may_and_no_more() -> None:
    packages = {
        path.parent.relative_to(ROOT).as_posix().replace("/", "."): path
        for package in PACKAGES
        for path in (ROOT / package).rglob("__init__.py")
    }
    wrong = [
        (module, name)
        for module, path in {**sources(), **packages}.items()
        if (room := room_of(module)) is not None
        for name in imported(path)
        if room_of(name) is not None and room_of(name) not in reachable(room)
    ]
    assert wrong == []


def imported(path: Path) -> set[str]:
    """The modules of ours that a file imports anywhere but for type checking."""
    tree = ast.parse(path.read_text())
    typed = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typed:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return {name for name in found if name.partition(".")[0] in PACKAGES}


def test_no_room_holds_more_than_a_dozen_modules() -> None:
    counts: dict[Path, int] = {}
    for path in sources().values():
        counts[path.parent] = counts.get(path.parent, 0) + 1
    assert {str(folder): n for folder, n in counts.items() if n > 12} == {}


def test_every_room_says_what_lives_there() -> None:
    silent = [
        path
        for package in PACKAGES
        for path in (ROOT / package).rglob("__init__.py")
        if len(path.read_text()) < 50
    ]
    assert silent == []


def below(*rooms: str) -> list[str]:
    return [m for m in MODULES if m.startswith(tuple(f"{room}." for room in rooms))]


SHOWN = [f"compose.console.{name}" for name in ("device", "history", "learning", "pages")]
LAKE = "streams.batch.output_tables"  # loaded only where the output is one
# What is imported, and the libraries that a process of it must not load.
LIGHT: dict[str, tuple[list[str], str]] = {
    "what a device shares": (
        below("streams.contract"), "torch faust flwr onnxruntime deltalake kafka"
    ),
    "har": (["streams.tasks.har"], "torch faust flwr pandas deltalake"),
    "hapt": (["streams.tasks.hapt"], "torch faust flwr pandas deltalake"),
    "an agent": (
        ["compose.cli.edge", "edge_client.process", "streams.tasks.har"],
        "torch faust flwr deltalake duckdb onnx opentelemetry pyarrow "
        "paho prometheus_client "  # seldom
        "rich asyncio pydantic "  # for a person
        "http urllib.request tarfile",  # to fetch
    ),
    "edge status": (
        ["compose.cli.edge", "edge_client.maintenance"], "kafka onnxruntime pyarrow rich"
    ),
    "a device's modules": (below("edge_client", "streams.tasks"), "pyarrow"),
    "a ClientApp": (["edge_client.client_app"], "torch faust onnxruntime kafka pyarrow"),
    "a batch job": (
        [m for m in below("streams.batch") if m != LAKE],
        "torch faust flwr kafka deltalake onnx ray",
    ),
    "the public package": (["tidewheel"], "numpy msgspec pyarrow cryptography"),
    "the console": (
        [m for m in MODULES if m.startswith("compose.console")], "torch faust flwr deltalake"
    ),
    "what the console shows": (SHOWN, "jinja2 fastapi starlette torch"),
    "up": (["compose.launcher.up"], "torch onnx flwr faust duckdb deltalake pandas pyarrow"),
    "a worker": (["streams.worker.app"], "flwr onnxruntime opentelemetry"),
    "the controller": (["federation.controller.controller"], "faust deltalake flwr torch"),
    "a ServerApp": (["federation.server_app"], "torch faust deltalake"),
    "rounds": (
        [m for m in MODULES if m.startswith("federation.rounds")],
        "flwr torch",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LIGHT)
def test_a_process_loads_no_library_that_it_does_not_need(name: str) -> None:
    modules, heavy = LIGHT[name]
    assert not libraries(loaded(*modules), *heavy.split())


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_no_command_and_no_library(option: str) -> None:
    code = f"""
import atexit, sys
atexit.register(lambda: print("modules", *sys.modules))
from compose.cli.main import main
sys.argv[1:] = ["{option}"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    modules = frozenset(done.stdout.splitlines()[-1].split())
    assert {m for m in modules if m.startswith("compose.cli.")} == {"compose.cli.main"}
    assert not libraries(modules, "numpy", "msgspec", "rich", "pyarrow", "cryptography", "kafka")


def test_a_task_file_imports_numpy_alone() -> None:
    code = "from tidewheel import Task, Device; import sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert not libraries(frozenset(done.stdout.split()), "msgspec", "pyarrow", "cryptography")


FLOWER = {
    "federation.server_app",
    "edge_client.client_app",
    "edge_client.supernode",
}


def importers(library: str) -> set[str]:
    """The product's modules whose source imports `library`."""
    found = set()
    words = (f"import {library}", f"from {library}")
    for module, path in sources().items():
        lines = [line.strip() for line in path.read_text().splitlines()]
        if any(line == w or line.startswith((f"{w} ", f"{w}.")) for line in lines for w in words):
            found.add(module)
    return found


WORKER, KAFKA = "streams.worker", "streams.kafka"
SEAMS = {  # library: the modules that import it
    "faust": f"{WORKER}.app {WORKER}.agents",
    "flwr": " ".join(FLOWER),
    "kafka": " ".join(
        f"{KAFKA}.{name}"
        for name in ("admin", "election", "patches", "producer", "reader", "refusals")
    ),
    "ray": "",
    "aiokafka": f"{WORKER}.app {WORKER}.agents {WORKER}.patches",
    "deltalake": "streams.batch.output_tables streams.batch.sources.tables "
    f"{WORKER}.store.delta_store {WORKER}.store.tables",
    "onnxruntime": "streams.learning.onnx_model federation.evaluation.quantization",
    "prometheus_client": f"{WORKER}.metrics compose.cli.batch.run edge_client.metrics "
    "federation.controller.metrics",
    "fastapi": "compose.console.server compose.console.site",
    "adbc_driver_postgresql": "streams.batch.output_tables",
    "fsspec": "streams.runtime.files streams.batch.sources.places",
    "opentelemetry": "streams.runtime.tracing",
    "mlflow": "federation.controller.tracking",
    "opacus": "federation.rounds.privacy",
    "paho": "edge_client.sources.mqtt",
    "pickle": "streams.tasks.hapt",
    "duckdb": "streams.batch.output_tables streams.batch.sources.selection compose.cli.views "
    f"{WORKER}.store.retention {WORKER}.store.position {WORKER}.store.query "
    f"{WORKER}.store.late_labels examples.batch.demo",
}


@pytest.mark.parametrize("library", SEAMS)
def test_a_library_is_imported_behind_its_seam_only(library: str) -> None:
    assert importers(library) <= set(SEAMS[library].split())


def test_nothing_of_flower_but_its_public_modules_is_used() -> None:
    for part in ("app", "clientapp", "serverapp"):
        assert importers(f"flwr.{part}") <= FLOWER
    private = ("server", "client", "common", "supercore", "supernode", "superlink", "proto", "cli")
    node = {"edge_client.supernode"}  # which speaks Flower's fleet protocol by its own client
    grid = {"federation.server_app"}  # which lets Flower's grid ask sooner
    seam = {"supernode": node, "supercore": node | grid, "common": node, "superlink": grid}
    for part in private:
        assert importers(f"flwr.{part}") <= seam.get(part, set())
