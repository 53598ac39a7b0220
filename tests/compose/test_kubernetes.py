"""The manifests in compose/kubernetes: valid, hardened, and with the commands of compose.yaml."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from compose.cli.main import load

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "compose" / "kubernetes"
PAGE = ROOT / "docs" / "how-to" / "containers.md"
OLDEST = "1.29"  # sidecars: init containers that go on

Document = dict[str, Any]


def documents() -> Iterator[tuple[str, Document]]:
    for path in sorted(FOLDER.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            yield f"{document['kind']}/{document['metadata']['name']}", document


ALL = dict(documents())
PODS = {name: d["spec"]["template"] for name, d in ALL.items() if "template" in d.get("spec", {})}
CONTAINERS = {
    container["name"]: (name, container)
    for name, pod in PODS.items()
    for container in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"])
}


def test_these_manifests_are_there() -> None:
    assert {"StatefulSet/server", "Deployment/worker", "Deployment/console"} == PODS.keys()
    kinds = {name.partition("/")[0] for name in ALL}
    assert {"HorizontalPodAutoscaler", "NetworkPolicy", "PersistentVolumeClaim"} <= kinds


@pytest.mark.parametrize("version", [OLDEST, "1.37"])
@pytest.mark.parametrize("name", ALL)
def test_a_manifest_is_as_the_schemas_of_kubernetes_say(name: str, version: str) -> None:
    kubernetes_validate.validate(ALL[name], version, strict=True)


@pytest.mark.parametrize("name", PODS)
def test_a_pod_runs_as_nobody_special_and_knows_no_token_of_the_cluster(name: str) -> None:
    spec = PODS[name]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 10001
    assert {volume.get("hostPath") for volume in spec["volumes"]} == {None}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_is_hardened_and_its_mounts_are_volumes_of_its_pod(name: str) -> None:
    pod, container = CONTAINERS[name]
    assert container["securityContext"] == {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in container["resources"]["limits"]
    spec = PODS[pod]["spec"]
    volumes = {volume["name"] for volume in spec["volumes"]}
    volumes |= {d["metadata"]["name"] for d in ALL[pod]["spec"].get("volumeClaimTemplates", ())}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() <= volumes
    assert "/tmp" in mounts.values()  # the root is read-only


def words(name: str) -> list[str]:
    """The tidewheel command of a container, without `exec tidewheel`."""
    container = CONTAINERS[name][1]
    [line] = container["args"] if "command" in container else [shlex.join(container["args"])]
    found = shlex.split(line)
    return found[2:] if found[0] == "exec" else found


@pytest.mark.parametrize("name", ["superlink", "controller", "worker", "console"])
def test_a_command_is_one_that_there_is_and_that_of_compose_yaml(name: str) -> None:
    command, *rest = [re.sub(r"\$PARTITIONS", "4", word) for word in words(name)]
    load(command).make_context(command, [*rest])  # fails for an option that there is not
    services = yaml.safe_load((ROOT / "compose" / "docker" / "compose.yaml").read_text())
    [*line] = services["services"][name]["command"]
    text = (" ".join(line) if len(line) > 1 else line[0]).replace("$$", "$")
    text = (
        text.replace("${PARTITIONS:-4}", "4")
        .replace(" $OPTIONS", "")
        .replace("/enrolled", "/trust")
        .replace(" --host 0.0.0.0", "")  # in a pod port-forward reaches loopback
    )
    wanted = [word for word in shlex.split(text) if word not in ("exec", "tidewheel")]
    assert [command, *rest] == wanted


def test_the_autoscaler_goes_up_to_the_number_of_partitions_by_a_metric_that_there_is() -> None:
    scaler = ALL["HorizontalPodAutoscaler/worker"]["spec"]
    assert str(scaler["maxReplicas"]) == ALL["ConfigMap/tidewheel"]["data"]["PARTITIONS"]
    [metric] = scaler["metrics"]
    assert (
        f"`{metric['pods']['metric']['name']}"
        in (ROOT / "docs" / "reference" / "metrics.md").read_text()
    )
    target = scaler["scaleTargetRef"]
    assert f"{target['kind']}/{target['name']}" in ALL


def test_what_the_manifests_do_not_make_the_page_does() -> None:
    made = {name.partition("/")[2] for name in ALL if name.startswith("ConfigMap/")}
    used = set()
    for pod in PODS.values():
        for volume in pod["spec"]["volumes"]:
            if "configMap" in volume:
                used.add(volume["configMap"]["name"])
            if "secret" in volume:
                used.add(volume["secret"]["secretName"])
    page = PAGE.read_text()
    assert used - made == {
        "tidewheel-files",
        "tidewheel-task",
        "tidewheel-kafka",
        "tidewheel-trust",
    }
    for name in used - made:
        assert re.search(rf"kubectl create (configmap|secret generic) {name} ", page), name
    for path in re.findall(r"--from-file=(?:\S+=)?(compose/\S+)", page):
        assert (ROOT / path).is_file(), path


def test_every_pod_is_closed_but_for_the_fleet_and_the_metrics() -> None:
    everyone = ALL["NetworkPolicy/tidewheel"]["spec"]
    assert "ingress" not in everyone
    part = everyone["podSelector"]["matchLabels"].items()
    assert all(part <= pod["metadata"]["labels"].items() for pod in PODS.values())
    opened = [
        rule["port"]
        for name, document in ALL.items()
        if name.startswith("NetworkPolicy/")
        for entry in document["spec"].get("ingress", ())
        for rule in entry["ports"]
    ]
    assert sorted(opened) == [9093, 9100]
