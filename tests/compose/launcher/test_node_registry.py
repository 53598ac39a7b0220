"""Keys of SuperNodes and what becomes of them, with a stand-in for the `flwr` command."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from compose.launcher.node_registry import (
    Line,
    Node,
    Nodes,
    fingerprint,
    lines,
    make_key,
    own_key,
    public_path,
    read_public_key,
)
from federation.controller.flwr_cli import Flwr
from streams.contract.errors import ProcessFailed, UsageError

OF_SSH_KEYGEN = (
    "ecdsa-sha2-nistp384 AAAAE2VjZHNhLXNoYTItbmlzdHAzODQAAAAIbmlzdHAzODQAAABhBNGa00ge+xtheNGtOBgm"
    "2cCro9VrD0uw1h4fyqeXHHNql00A65A5K1lWawy06vHJJmB9yjdGi/+STyaotJlwfGTW0zpSqjC/vrMkDC5Mn0mt9Rr2"
    "QdOaWytnYy5+5mQM9g=="
)


class StandIn(Flwr):
    """A SuperLink that takes each key once, as Flower's does."""

    def __init__(self) -> None:
        super().__init__("flwr", "tidewheel")
        self.keys: dict[str, str] = {}
        self.status: dict[str, str] = {}

    def call(self, verb: str, *words: str) -> dict[str, object]:
        assert words[-1] == "tidewheel"
        if verb == "supernode list":
            return {"nodes": [{"node-id": n, "status": s} for n, s in self.status.items()]}
        if verb == "supernode register":
            return {"node-id": int(self.register(read_public_key(Path(words[0]))))}
        assert verb == "supernode unregister"
        if self.status.get(words[0]) in (None, "unregistered"):
            raise ProcessFailed("`flwr supernode unregister` failed: [code: 24] Node ID not found")
        self.status[words[0]] = "unregistered"
        return {"node-id": int(words[0])}

    def register(self, key: str) -> str:
        if key in self.keys:
            raise ProcessFailed("`flwr supernode register` failed: [code: 23] Public key in use.")
        node = str(100 + len(self.keys))
        self.keys[key], self.status[node] = node, "registered"
        return node


@pytest.fixture
def flwr() -> StandIn:
    return StandIn()


@pytest.fixture
def nodes(tmp_path: Path, flwr: StandIn) -> Nodes:
    return Nodes(tmp_path / "keys", flwr)


def kept(nodes: Nodes, device: str) -> Node:
    return Node.decode((nodes.key(device).parent / "node.json").read_bytes())


def test_a_fingerprint_is_the_one_that_ssh_keygen_shows(tmp_path: Path) -> None:
    path = tmp_path / "key.pub"
    path.write_text(f"{OF_SSH_KEYGEN} me@pump\n")
    found = fingerprint(read_public_key(path))
    assert found == "SHA256:8V1PWt0Ebg/TiTEDFm8Ilnlm2KkgJ7gyJNCgWrsvooc"


def test_another_key_takes_the_place_once_the_first_is_removed(
    nodes: Nodes, flwr: StandIn, tmp_path: Path
) -> None:
    nodes.add("d0")
    first = kept(nodes, "d0")
    made = tmp_path / "made" / "key"
    make_key(made)
    with pytest.raises(UsageError, match=r"registered with another key, SHA256:.*node remove d0"):
        nodes.add("d0", public_path(made))
    assert kept(nodes, "d0") == first
    nodes.remove("d0")
    assert nodes.add("d0", public_path(made)) is True
    assert flwr.status[first.node] == "unregistered"
    assert kept(nodes, "d0").public_key == own_key(made)
    assert not nodes.key("d0").exists()  # it would not be the node's any more
    with pytest.raises(UsageError, match="another key"):
        nodes.add("d0")
    nodes.remove("d0")
    assert nodes.add("d0") is True
    assert kept(nodes, "d0").public_key == own_key(nodes.key("d0"))


def test_a_key_that_the_superlink_has_had_before_is_told(
    nodes: Nodes, flwr: StandIn, tmp_path: Path
) -> None:
    made = tmp_path / "made" / "key"
    make_key(made)
    nodes.add("d0", public_path(made))
    nodes.remove("d0")
    with pytest.raises(UsageError, match="accepts a key once: create another on d0"):
        nodes.add("d0", public_path(made))


def test_a_crash_before_the_node_is_written_down_costs_a_key(nodes: Nodes, flwr: StandIn) -> None:
    flwr.register(make_key(nodes.key("d0")))
    assert nodes.add("d0") is True
    assert flwr.status[kept(nodes, "d0").node] == "registered"
    assert len(flwr.keys) == 2


def test_a_superlink_with_an_empty_database_is_told_again(nodes: Nodes, flwr: StandIn) -> None:
    nodes.add("d0")
    first = kept(nodes, "d0")
    flwr.keys.clear()
    flwr.status.clear()
    assert nodes.add("d0") is True
    assert kept(nodes, "d0").public_key == first.public_key


def test_the_list_tells_what_only_one_side_has(nodes: Nodes, flwr: StandIn) -> None:
    public = "ecdsa-sha2-nistp384 AAAA"
    known = [Node(device=d, public_key=public, node=n) for d, n in (("b", "2"), ("a", "1"))]
    mark = fingerprint(public)
    found = lines(known, {"2": "online", "3": "registered", "4": "unregistered"})
    assert found == [
        Line("a", "1", "unknown", mark),
        Line("b", "2", "online", mark),
        Line("", "3", "registered", ""),
    ]


def test_keys_that_flower_does_not_take_are_named(nodes: Nodes, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pub"
    key = Ed25519PrivateKey.generate().public_key()
    wrong.write_bytes(
        key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    )
    with pytest.raises(UsageError, match=r"kind ssh-ed25519: Flower needs `ssh-keygen -t ecdsa`"):
        nodes.add("d0", wrong)
    wrong.write_text("no key")
    with pytest.raises(UsageError, match="is not a public key"):
        nodes.add("d0", wrong)
    with pytest.raises(UsageError, match="is not a public key"):
        nodes.add("d0", tmp_path / "none")
    with pytest.raises(UsageError, match="letters, digits"):
        nodes.add("../d0")


def test_a_key_that_others_can_read_is_refused(nodes: Nodes) -> None:
    nodes.add("d0")
    nodes.key("d0").chmod(0o644)
    with pytest.raises(UsageError, match="can be read by others: chmod 600 it"):
        nodes.add("d0")


def test_what_cannot_be_read_is_named(nodes: Nodes) -> None:
    nodes.add("d0")
    (nodes.key("d0").parent / "node.json").write_text(json.dumps({"device": 3}))
    with pytest.raises(UsageError, match=r"node\.json cannot be read: .*: remove it"):
        nodes.lines()
