"""The SuperNodes that a SuperLink with authentication admits: their keys and registration.

    <state>/keys/nodes/<device>/key        private, 0600; missing if it was created elsewhere
    <state>/keys/nodes/<device>/key.pub    public
    <state>/keys/nodes/<device>/node.json  the registration: device, public key, Flower's node id

To add a device:

    1 create its key, or take the public key that the device has created
    2 register the key at the SuperLink
    3 write node.json

To remove it: 1 unregister the node, 2 delete the folder. After a crash a repeated call skips
completed steps. A SuperLink accepts a public key only once, even after it was unregistered: after a
crash between 2 and 3 a key of ours is created again, and the first node is never used.

A key is ECDSA on P-384, in OpenSSH's format: `ssh-keygen -t ecdsa -b 384` creates the same two
files. Flower also accepts P-256 and P-521.
"""

import base64
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from federation.admission import Node
from federation.controller.flwr_cli import Flwr, rows
from streams.contract.errors import MalformedRecord, ProcessFailed, UsageError
from streams.contract.task import DEVICE_NAME
from streams.runtime.files import write_atomic

KINDS = ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521")

UNKNOWN = "unknown"  # to this SuperLink, which has another database
UNREGISTERED = "unregistered"
KEY_IN_USE, NO_SUCH_NODE = "[code: 23]", "[code: 24]"  # Flower's codes in its error texts


def make_key(path: Path) -> str:
    """Create a private key (0600) at `path` and its public key at `path` plus `.pub`; return the
    public key as text."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    write_atomic(path, private, mode=0o600)
    write_atomic(public_path(path), public + b"\n")
    return public.decode()


def public_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.pub")


def own_key(path: Path) -> str:
    """Return the public key of the private key at `path`; raise UsageError if others can read
    that."""
    try:
        if path.stat().st_mode & 0o077:
            raise UsageError(f"the node's key {path} can be read by others: chmod 600 it")
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise UsageError(
            f"cannot read the node's key {path}: {exc}: `tidewheel node remove` it"
        ) from exc
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return checked(public.decode(), path)


def read_public_key(path: Path) -> str:
    """Return the public key in the file at `path`, without its comment."""
    try:
        text = path.read_text()
        serialization.load_ssh_public_key(text.encode())
    except (OSError, ValueError, UnsupportedAlgorithm) as exc:
        raise UsageError(
            f"{path} is not a public key in OpenSSH's format ({exc}): create a pair on the device "
            "with `ssh-keygen -t ecdsa -b 384` and use its .pub file"
        ) from exc
    return checked(text, path)


def checked(text: str, path: Path) -> str:
    """Return `text` without its comment; raise UsageError if Flower does not accept this kind of
    key."""
    kind, key = text.split()[:2]
    if kind not in KINDS:
        raise UsageError(f"{path} is a key of kind {kind}: Flower needs `ssh-keygen -t ecdsa`")
    return f"{kind} {key}"


def fingerprint(public: str) -> str:
    """Return the fingerprint as `ssh-keygen -l` shows it: SHA256 and base64 of the key's bytes."""
    digest = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


@dataclass(frozen=True)
class Line:
    """A line of `tidewheel node list`; a node registered elsewhere has no device and key."""

    device: str
    node: str
    status: str
    fingerprint: str


# --- pure ---------------------------------------------------------------------------------------


def is_registered(node: Node | None, statuses: Mapping[str, str]) -> bool:
    """Return whether the SuperLink with these nodes admits `node`."""
    return node is not None and statuses.get(node.node, UNREGISTERED) != UNREGISTERED


def lines(known: list[Node], statuses: Mapping[str, str]) -> list[Line]:
    """Return the devices by name, then the SuperLink's other nodes."""
    ours = {node.node for node in known}
    found = [
        Line(n.device, n.node, statuses.get(n.node, UNKNOWN), fingerprint(n.public_key))
        for n in sorted(known, key=lambda n: n.device)
    ]
    others = [item for item in sorted(statuses.items()) if item[0] not in ours]
    return found + [Line("", node, s, "") for node, s in others if s != UNREGISTERED]


# --- files and Flower ---------------------------------------------------------------------------


class Nodes:
    """The nodes of one state folder and of the SuperLink that `flwr` is connected to."""

    def __init__(self, keys: Path, flwr: Flwr) -> None:
        self._folder, self._flwr = keys.absolute() / "nodes", flwr

    def key(self, device: str) -> Path:
        """Return the path of a device's private key."""
        return self._of(device) / "key"

    def statuses(self) -> dict[str, str]:
        """Return the SuperLink's nodes: id -> `registered`, `online`, `offline` or
        `unregistered`."""
        answer = self._flwr.call("supernode list", self._flwr.connection)
        return {str(row.get("node-id")): str(row.get("status")) for row in rows(answer, "nodes")}

    def lines(self) -> list[Line]:
        """Return the nodes of the state folder and of the SuperLink."""
        names = [path.parent.name for path in self._folder.glob("*/node.json")]
        return lines([n for n in map(self._read, names) if n is not None], self.statuses())

    def add(
        self,
        device: str,
        public_key: Path | None = None,
        *,
        statuses: Mapping[str, str] | None = None,
    ) -> bool:
        """Admit a device, with a key of ours or its own; return False, and do nothing, if it is
        admitted with that key.

        statuses: from self.statuses(), if known. Raises UsageError if it is admitted with another
        key, or if the SuperLink has had this key before.
        """
        kept = self._read(device)
        given = read_public_key(public_key) if public_key is not None else None
        inside = is_registered(kept, self.statuses() if statuses is None else statuses)
        if inside and kept is not None:
            if kept.public_key == given or (given is None and self._is_own(kept)):
                return False
            raise UsageError(
                f"{device} is registered with another key, {fingerprint(kept.public_key)}: "
                f"tidewheel node remove {device}"
            )
        entry = self._take(device, given) if given else self._make(device)
        write_atomic(self._of(device) / "node.json", entry.encode())
        return True

    def add_all(self, devices: Sequence[str]) -> None:
        """Admit devices with keys of ours, two at a time, because each takes most of a second of a
        core."""
        statuses = self.statuses()
        with ThreadPoolExecutor(2) as pool:
            for _ in pool.map(lambda device: self.add(device, statuses=statuses), devices):
                pass

    def remove(self, device: str) -> None:
        """Remove a device; its SuperNode ends within seconds. Raises UsageError if it is unknown
        here."""
        kept = self._read(device)
        if kept is None:
            raise UsageError(f"{device} was not added: see `tidewheel node list`")
        self._unregister(kept.node)
        shutil.rmtree(self._of(device))

    def _take(self, device: str, public: str) -> Node:
        """Register the key that a device has created."""
        key = self.key(device)
        key.unlink(missing_ok=True)  # it replaces a key of ours
        write_atomic(public_path(key), f"{public}\n".encode())
        node = self._register(public_path(key))
        if node is None:
            raise UsageError(
                f"the SuperLink has had the key {fingerprint(public)} before and accepts a key "
                f"once: create another on {device}"
            )
        return Node(device=device, public_key=public, node=node)

    def _make(self, device: str) -> Node:
        """Register a key of ours: the existing one, if the SuperLink takes it."""
        key = self.key(device)
        public = own_key(key) if key.exists() else make_key(key)
        node = self._register(public_path(key))
        if node is None:
            public = make_key(key)
            node = self._register(public_path(key))
        if node is None:
            raise ProcessFailed(f"the SuperLink has had the new key of {device} before")
        return Node(device=device, public_key=public, node=node)

    def _register(self, public: Path) -> str | None:
        """Return the node's id; None if the SuperLink has had this key before."""
        try:
            answer = self._flwr.call("supernode register", str(public), self._flwr.connection)
        except ProcessFailed as exc:
            if KEY_IN_USE in str(exc):
                return None
            raise
        return str(answer["node-id"])

    def _unregister(self, node: str) -> None:
        try:
            self._flwr.call("supernode unregister", node, self._flwr.connection)
        except ProcessFailed as exc:
            if NO_SUCH_NODE not in str(exc):
                raise

    def _is_own(self, node: Node) -> bool:
        key = self.key(node.device)
        return key.exists() and own_key(key) == node.public_key

    def _of(self, device: str) -> Path:
        if not DEVICE_NAME.fullmatch(device):
            raise UsageError(
                f"device {device!r}: letters, digits, '.', '_' and '-' only, at most 63"
            )
        return self._folder / device

    def _read(self, device: str) -> Node | None:
        path = self._of(device) / "node.json"
        try:
            return Node.decode(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, MalformedRecord) as exc:
            raise UsageError(f"{path} cannot be read: {exc}: remove it and add it again") from exc
