"""Who may know whom, checked by importing each part in a fresh process."""

import json
import subprocess
import sys

import pytest

OURS = ("streams", "federation", "edge_client", "compose")

PROBE = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""


def loaded(*modules: str) -> set[str]:
    """All modules that importing `modules` loads."""
    command = [sys.executable, "-c", PROBE, *modules]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return set(json.loads(done.stdout))


def ours(modules: set[str]) -> set[str]:
    return {m for m in modules if m.partition(".")[0] in OURS}


def parts(modules: set[str]) -> set[str]:
    """The parts of ours among `modules`: streams.contract, streams.worker, federation, …"""
    found = set()
    for module in ours(modules):
        names = module.split(".")
        if names[0] != "streams":
            found.add(names[0])
        elif len(names) > 1:
            found.add(".".join(names[:2]))
    return found


def libraries(modules: set[str], *names: str) -> set[str]:
    return {name for name in names if name in modules}


CONTRACT = [
    "streams.contract." + name
    for name in (
        "accounting",
        "artifact",
        "bus",
        "disk",
        "documents",
        "errors",
        "health",
        "records",
        "signing",
        "task",
        "topics",
    )
]


def test_the_contract_knows_nothing_else_of_ours() -> None:
    modules = loaded(*CONTRACT, "streams.learning.learning")
    assert parts(modules) == {"streams.contract"}
    assert not libraries(modules, "faust", "flwr", "onnxruntime", "deltalake")


def test_the_contract_of_a_device_needs_no_torch() -> None:
    assert not libraries(loaded(*CONTRACT), "torch", "faust", "flwr")


@pytest.mark.parametrize("module", ["streams.tasks.har", "streams.tasks.hapt"])
def test_a_task_knows_the_contract_only_and_loads_no_torch(module: str) -> None:
    modules = loaded(module)
    assert parts(modules) <= {"streams.contract", "streams.tasks"}
    assert not libraries(modules, "torch", "faust", "flwr", "pandas")


def test_the_agent_holds_no_torch_no_faust_and_no_flower() -> None:
    modules = loaded("edge_client.agent", "streams.tasks.har")
    assert parts(modules) == {"edge_client", "streams.contract", "streams.tasks"}
    heavy = ("torch", "faust", "flwr", "deltalake", "duckdb", "onnx")
    seldom = ("pyarrow.compute", "paho", "prometheus_client")
    assert not libraries(modules, *heavy, *seldom)


def test_the_client_app_holds_no_torch_and_no_arrow() -> None:
    modules = loaded("edge_client.client_app")
    assert parts(modules) == {"edge_client", "streams.contract"}
    assert not libraries(modules, "torch", "faust", "onnxruntime", "kafka")


def test_the_worker_knows_neither_devices_nor_federation() -> None:
    modules = loaded("streams.worker.app")
    assert parts(modules) == {"streams.contract", "streams.worker"}
    assert not libraries(modules, "flwr", "onnxruntime")


@pytest.mark.parametrize("module", ["federation.server_app", "federation.controller.controller"])
def test_the_federation_knows_neither_devices_nor_the_worker(module: str) -> None:
    modules = loaded(module)
    assert parts(modules) == {"federation", "streams.contract"}
    assert not libraries(modules, "faust", "deltalake")


def test_the_rounds_and_the_treatment_of_tensors_know_no_flower() -> None:
    assert not libraries(
        loaded("federation.rounds.run", "federation.aggregation.aggregator"), "flwr", "torch"
    )


def test_the_controller_needs_neither_flower_nor_torch() -> None:
    assert not libraries(loaded("federation.controller.controller"), "flwr", "torch")


STRATEGIES = {  # the files of algorithms that name a class of Flower's, and what makes its messages
    f"federation.aggregation.strategies.{name}" for name in ("flower", "fedopt", "krum", "yin")
}

CLIENTS = {"edge_client.client_app", "edge_client.simulation_app"}
FLOWER = {"federation.server_app", *CLIENTS, *STRATEGIES}


def importers(library: str) -> set[str]:
    """Our modules whose source imports `library`."""
    from pathlib import Path

    root = Path(__file__).parent.parent.parent
    found = set()
    for part in OURS:
        for path in (root / part).rglob("*.py"):
            words = (f"import {library}", f"from {library}")
            lines = [line.strip() for line in path.read_text().splitlines()]
            if any(
                line == w or line.startswith((f"{w} ", f"{w}.")) for line in lines for w in words
            ):
                found.add(path.relative_to(root).with_suffix("").as_posix().replace("/", "."))
    return found


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("faust", {"streams.worker.app", "streams.worker.agents"}),
        (
            "flwr",
            FLOWER,
        ),
        ("kafka", {"streams.kafka.bus", "streams.kafka.election"}),
        ("aiokafka", {"streams.worker.app", "streams.worker.agents"}),
        ("deltalake", {"streams.worker.store.delta_store"}),
        ("onnxruntime", {"edge_client.inference.engine", "federation.evaluation.onnx_runner"}),
        (
            "prometheus_client",
            {"streams.worker.metrics", "edge_client.metrics", "federation.controller.metrics"},
        ),
        ("opacus", {"federation.aggregation.privacy"}),
        ("paho", {"edge_client.sources.mqtt"}),
        ("pickle", {"streams.tasks.hapt"}),
        (
            "duckdb",
            {"streams.worker.store.position", "streams.worker.store.query", "compose.cli.main"},
        ),
    ],
)
def test_a_library_is_imported_behind_its_seam_only(library: str, allowed: set[str]) -> None:
    assert importers(library) <= allowed


def test_nothing_of_flower_but_its_public_modules_is_used() -> None:
    for part in ("app", "clientapp", "serverapp"):
        assert importers(f"flwr.{part}") <= FLOWER
    private = ("server", "client", "common", "supercore", "supernode", "superlink", "proto", "cli")
    for part in private:
        assert not importers(f"flwr.{part}")
