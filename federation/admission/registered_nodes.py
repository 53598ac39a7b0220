"""The devices whose SuperNodes were registered by a key, as the state folder knows them.

    <state>/keys/nodes/<device>/node.json    written by compose.security.node_registry

Where there are such files, a node is one device's: its replies count under that name alone, and
nodes that are not among them belong to other tasks of the same SuperLink.
"""

import logging
from pathlib import Path

from streams.contract.documents import Document
from streams.contract.errors import MalformedRecord

log = logging.getLogger(__name__)


class Node(Document):
    """The file node.json: a device, its public key (OpenSSH, no comment) and Flower's id of its
    node."""

    device: str
    public_key: str
    node: str


def registered(keys: Path) -> dict[int, str]:
    """Return the devices by node; none in a state folder that registered no node."""
    found: dict[int, str] = {}
    for path in sorted((keys / "nodes").glob("*/node.json")):
        try:
            entry = Node.decode(path.read_bytes())
            found[int(entry.node)] = entry.device
        except (OSError, MalformedRecord, ValueError) as exc:
            log.warning("%s cannot be read, its node takes no part: %s", path, exc)
    return found
