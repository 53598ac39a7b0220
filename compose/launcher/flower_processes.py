"""How Flower's own processes are started: command lines, environment, folders and probes.

    <state>/flower/superlink.db    the SuperLink's runs and messages: a restart keeps them
    <state>/flower/secret          shared by SuperLink and SuperExec, 0600
    <state>/flower/app             what `flwr run` bundles: settings only, no code of ours; the
                                   controller that leads writes it
    <state>/flower/home            FLWR_HOME of SuperLink, SuperExec and `flwr`

With TLS the SuperLink takes SuperNodes with a registered key only
(`compose.launcher.node_registry`); the others get the path of the CA's certificate.

Under `up` both run while the controller wants them (compose.launcher.fleet). Order: superlink, wait
until `is_ready`, superexec. The SuperExec starts the ServerApp of each run, which invites the
devices; an invited agent starts its SuperNode (edge_client.participation). A ServerApp is found on
PATH and looks for its parent every 0.2 s, so that it ends soon after it even when it is killed; one
at work ends at its next signal check.
"""

import os
import secrets
import socket
import ssl
import sys
import tomllib
import urllib.request
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from compose.launcher.broker import Launch
from compose.launcher.certificates import Tls
from federation.controller.flwr_cli import ConfigValue, Flwr, Submission, toml
from federation.rounds.settings import RUN_CONFIG
from streams.contract.errors import UsageError
from streams.runtime.files import write_atomic

HOST = "127.0.0.1"
CONNECTION = "tidewheel"
# Of the SuperExec asking for a run to start. At 0.1 s it costs 3.4 % of a core.
POLL_INTERVAL_S = 0.25

_APP = """\
[project]
name = "tidewheel"
version = "1.0.0"
description = "Federated rounds of a Tidewheel task."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "tidewheel"
fab-include = ["README.md"]

[tool.flwr.app.components]
serverapp = "federation.server_app:app"
clientapp = "edge_client.client_app:app"

[tool.flwr.app.config]
"""

_README = "Settings of a run. The code is the installed package's on every machine.\n"


def superlink(state: Path, port: int, tls: Tls | None = None) -> Launch:
    """The SuperLink: control, fleet and run-time API on one loopback port."""
    folder = _folder(state)
    argv = [program("flower-superlink"), "--host", HOST, "--port", str(port)]
    if tls is None:
        argv += ["--insecure"]
    else:
        argv += ["--ssl-ca-certfile", str(tls.ca), "--ssl-certfile", str(tls.certificate)]
        argv += ["--ssl-keyfile", str(tls.key), "--enable-supernode-auth"]
    argv += ["--database", str(folder / "superlink.db"), "--isolation", "process"]
    argv += ["--disable-runtime-dependency-installation"]
    argv += ["--superexec-auth-secret-file", str(_secret(folder))]
    return Launch(argv, environment(folder / "home"))


def superexec(
    state: Path, port: int, extra: Mapping[str, str] | None = None, ca: Path | None = None
) -> Launch:
    """The SuperExec that starts ServerApps; `extra` is environment for them (the broker's)."""
    folder = _folder(state)
    argv = [program("flower-superexec"), *_trust(ca), "--runtime-api-address", f"{HOST}:{port}"]
    argv += ["--superexec-auth-secret-file", str(_secret(folder))]
    return Launch(argv, {**environment(folder / "home"), **(extra or {})})


def environment(home: Path) -> dict[str, str]:
    """What every process of Flower's gets: its own home, no network but the SuperLink."""
    return {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(POLL_INTERVAL_S),
        # flwr-serverapp is started by its bare name.
        "PATH": f"{_bin()}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        # Two cores are shared by many small processes; their arrays are small.
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }


def submission(
    state: Path,
    address: str,
    config: Mapping[str, ConfigValue],
    ca: Path | None = None,
) -> Submission:
    """Return how to start and watch runs at the SuperLink at `address` (HOST:PORT), which may still
    write the app's folder and the connection.

    `config` are the settings of this installation (task, state, minimum-nodes, …); each run may
    change them.
    """
    folder = _folder(state)
    unknown = sorted(set(config) - set(RUN_CONFIG))
    if unknown:
        raise UsageError(f"a run has no setting {unknown[0]!r}; it has: {', '.join(RUN_CONFIG)}")
    app = folder / "app"
    text = _APP + toml({**RUN_CONFIG, **config})
    tomllib.loads(text)  # a value that TOML cannot hold must fail here, not at the first run
    files = {
        app / "pyproject.toml": text.encode(),
        app / "README.md": _README.encode(),
        _connections(state): _connection(address, ca),
    }
    return Submission(_flwr(state), app, partial(listens, address), files)


def flwr(state: Path, address: str | None = None, ca: Path | None = None) -> Flwr:
    """The `flwr` command with a connection to the SuperLink at `address` (HOST:PORT), whose
    certificate `ca` has signed; None: plain text.

    Without an address it is the connection that this state folder had last.
    """
    if address is not None:
        write_atomic(_connections(state), _connection(address, ca))
    elif not _connections(state).exists():
        own = state / "keys" / "superlink" / "ca.pem"  # of `tidewheel superlink`
        trusted = f" --superlink-ca {own}" if own.exists() else " and its --superlink-ca"
        raise UsageError(
            f"no controller of {state} has reached a SuperLink yet, and none was named: pass "
            f"--superlink HOST:PORT (`tidewheel superlink`: 127.0.0.1:8000){trusted}"
        )
    return _flwr(state)


def _flwr(state: Path) -> Flwr:
    return Flwr(program("flwr"), CONNECTION, environment(_folder(state) / "home"))


def _connections(state: Path) -> Path:
    return _folder(state) / "home" / "config.toml"


def _connection(address: str, ca: Path | None) -> bytes:
    """Return the file of connections, with the one to `address`."""
    connection: dict[str, ConfigValue] = {"address": address}
    if ca is None:
        connection["insecure"] = True
    else:
        connection["root-certificates"] = str(readable(ca).absolute())
    text = f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
    return (text + toml(connection)).encode()


def readable(ca: Path) -> Path:
    """`ca` where it is a file of certificates; UsageError says what it is."""
    try:
        ssl.create_default_context(cafile=ca)
    except OSError as exc:  # ssl.SSLError is one
        raise UsageError(f"{ca} holds no CA certificate (PEM): {exc}") from exc
    return ca


def listens(address: str) -> bool:
    """Whether something takes connections at HOST:PORT; a proxy may not pass on `is_ready`."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2.0).close()
    except OSError:
        return False
    return True


def is_ready(address: str, timeout_s: float = 1.0, ca: Path | None = None) -> bool:
    """Whether the SuperLink answers at HOST:PORT, with TLS where there is a `ca`."""
    url = f"{'http' if ca is None else 'https'}://{address}/health"
    context = None if ca is None else ssl.create_default_context(cafile=ca)
    try:
        with urllib.request.urlopen(url, timeout=timeout_s, context=context) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def program(name: str) -> str:
    """A command of Flower's, installed beside this Python."""
    path = _bin() / name
    if not path.exists():
        raise UsageError(f"there is no {path}: pip install 'tidewheel[federation]'")
    return str(path)


def _trust(ca: Path | None) -> list[str]:
    return ["--insecure"] if ca is None else ["--root-certificates", str(ca)]


def _bin() -> Path:
    return Path(sys.executable).absolute().parent


def _folder(state: Path) -> Path:
    return (state / "flower").absolute()


def _secret(folder: Path) -> Path:
    """The secret without which no local process may take a ServerApp's work from the SuperLink."""
    path = folder / "secret"
    if not path.exists():
        write_atomic(path, secrets.token_hex(32).encode(), mode=0o600)
    return path
