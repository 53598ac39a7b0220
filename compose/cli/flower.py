"""Flower's own processes on the server: `tidewheel superlink`; and `node`, the SuperNodes of
devices that may connect."""

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compose.cli.arguments import (
    DEFAULT_STATE,
    AsJson,
    Kafka,
    State,
    SuperlinkCa,
    address,
)
from compose.launcher.state_dir import StateDir
from compose.reports.terminal import console, print_json, say, table
from streams.contract.errors import UsageError
from streams.kafka.settings import BrokerSettings
from streams.runtime.process import by_thread

if TYPE_CHECKING:
    from compose.launcher.node_registry import Nodes

DeviceArgument = Annotated[str, typer.Argument(metavar="DEVICE", help="The device's name.")]
Superlink = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="The SuperLink; default: this state folder's last."),
]

LOOK_S = 0.3  # between two looks at the processes

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command("add")
def add(
    device: DeviceArgument,
    state: State = DEFAULT_STATE,
    superlink: Superlink = None,
    superlink_ca: SuperlinkCa = None,
    public_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The public key that the device has created (`ssh-keygen -t ecdsa -b 384`); "
            "default: create a pair here.",
        ),
    ] = None,
) -> None:
    """Admit a device's SuperNode by its key. A second call changes nothing.

    Prints the path of the private key that the SuperNode needs.
    """
    nodes = _nodes(state, superlink, superlink_ca)
    already = "" if nodes.add(device, public_key) else " already"
    where = "" if public_key else f": tidewheel edge run --node-key {nodes.key(device)}"
    say(f"{device} is registered{already}{where}")


@app.command("list")
def list_nodes(
    state: State = DEFAULT_STATE,
    superlink: Superlink = None,
    superlink_ca: SuperlinkCa = None,
    json: AsJson = False,
) -> None:
    """List the added devices and the SuperLink's nodes.

    Status: registered (never connected), online, offline, unregistered, or unknown to this
    SuperLink.
    """
    found = _nodes(state, superlink, superlink_ca).lines()
    if json:
        print_json([vars(line) for line in found])
        return
    rows = ((one.device or "-", one.node, one.status, one.fingerprint or "-") for one in found)
    console().print(table("", ("device", "node", "status", "key"), rows))


@app.command("remove")
def remove(
    device: DeviceArgument,
    state: State = DEFAULT_STATE,
    superlink: Superlink = None,
    superlink_ca: SuperlinkCa = None,
) -> None:
    """Remove a device's SuperNode and its key; it ends within seconds."""
    _nodes(state, superlink, superlink_ca).remove(device)
    say(f"{device} is no longer registered")


def superlink(
    state: State = DEFAULT_STATE,
    port: Annotated[int, typer.Option(min=1, max=65_535, help="On 127.0.0.1.")] = 8000,
    kafka: Kafka = None,
) -> None:
    """Run Flower's SuperLink on loopback, with TLS and for SuperNodes with registered keys only,
    and its SuperExec, which starts the server's part of each federated run.

    What dies of them is started again. The certificates and the database are in the state folder.
    Devices reach the SuperLink through a proxy, see compose/proxy/nginx.conf; the controller runs
    on the same machine. SIGTERM and Ctrl-C end both, and a run with them.
    """
    from compose.launcher.certificates import make_certificates
    from compose.launcher.fleet import Flower
    from compose.launcher.supervisor import Supervisor

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, by_thread(stop.set))
    environment = {"TIDEWHEEL_KAFKA": BrokerSettings.at(kafka).bootstrap}
    tls = make_certificates(StateDir(state).keys)
    supervisor = Supervisor(None)
    flower = Flower(state, environment, supervisor, port, tls, always=True)
    try:
        while not stop.wait(LOOK_S):
            flower.look()
            for line in supervisor.check():
                say(line)
    finally:
        supervisor.stop_all()


def _nodes(state: Path, superlink: str | None, ca: Path | None) -> "Nodes":
    from compose.launcher import flower_processes
    from compose.launcher.node_registry import Nodes

    if superlink is None and ca is not None:
        raise UsageError("--superlink-ca needs --superlink HOST:PORT")
    where = None if superlink is None else address(superlink)
    return Nodes(StateDir(state).keys, flower_processes.flwr(state, where, ca))
