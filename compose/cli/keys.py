"""`tidewheel keys`: the keys that devices trust, and the signing key."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from compose.cli.arguments import ANNOUNCED, DEFAULT_STATE, AsJson, Reason, RegistryPlace, State
from compose.launcher.state_dir import StateDir
from compose.reports.terminal import console, print_json, say, table
from streams.contract.errors import UsageError

if TYPE_CHECKING:
    from federation.registry.registry import Registry
    from streams.contract.decisions import Release


app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_keys(
    state: State = DEFAULT_STATE, registry: RegistryPlace = None, json: AsJson = False
) -> None:
    """List the keys of the state folder and those that the registry's decisions name.

    Devices: trusted, revoked, or not announced to them.
    """
    from federation.registry.key_rotation import keys_of
    from streams.runtime.trust import StoredKey, kept_keys

    layout = StateDir(state)
    kept = {key.id: key for key in kept_keys(layout.keys)}
    active: set[str] = set()
    revoked: set[str] = set()
    if kept and (registry or (layout.registry / "history").is_dir()):
        keys = keys_of(_registry(layout, registry))
        active, revoked = set(keys.active), set(keys.revoked)
    rows = []
    for name in sorted({*kept, *active, *revoked}):
        key = kept.get(name, StoredKey(name))
        status = "revoked" if name in revoked else "trusted" if name in active else "not told"
        rows.append({**vars(key), "devices": status})
    if json:
        print_json(rows)
        return
    columns = ("id", "private half", "devices", "signs")
    cells = (
        (one["id"], "here" if one["private"] else "-", one["devices"], "now" * one["in_use"])
        for one in rows
    )
    console().print(table("", columns, cells))


@app.command("trust")
def trust(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE.pub]", help="The public key; default: a new one's."),
    ] = None,
    state: State = DEFAULT_STATE,
    registry: RegistryPlace = None,
    reason: Reason = "",
) -> None:
    """Announce another key that devices and workers trust; it signs nothing yet.

    Without a file a key is created: <state>/keys/ID.pem (0600) and ID.pub.
    """
    from federation.registry import key_rotation
    from streams.contract.artifact import key_id
    from streams.runtime.trust import (
        keep_public,
        load_private_key,
        load_public_key,
        write_private_key,
    )

    layout = StateDir(state)
    signer, where = load_private_key(layout.signing_key), _registry(layout, registry)
    if file is None:
        fresh = Ed25519PrivateKey.generate()
        public = fresh.public_key()
        write_private_key(fresh, layout.keys / f"{key_id(public)}.pem")
    else:
        public = load_public_key(file)
    made = key_rotation.settled(lambda: key_rotation.trust(where, signer, public, reason))
    keep_public(layout.keys, public)
    if made is None:
        say(f"key {key_id(public)} is trusted already")
    else:
        _report(f"key {key_id(public)} is trusted", [made])


@app.command("use")
def use(
    name: Annotated[str, typer.Argument(metavar="ID", help="As `keys list` shows it.")],
    state: State = DEFAULT_STATE,
    registry: RegistryPlace = None,
) -> None:
    """Sign with another key from now on; the old one is kept under its id.

    A controller takes it within 2 s; a running federated run still signs with the old one.
    """
    from federation.registry import key_rotation
    from streams.contract.artifact import key_id
    from streams.runtime.failpoints import read_failpoint
    from streams.runtime.trust import private_key, take_over

    layout = StateDir(state)
    key, where = private_key(layout.keys, name), _registry(layout, registry)
    key_rotation.keys_of(where).check(key)
    take_over(layout.keys, key, read_failpoint(os.environ))
    made = key_rotation.settled(lambda: key_rotation.hand_over(where, key))
    text = f"key {key_id(key.public_key())} signs from now on"
    if made is None:
        say(f"{text}, as before")
    else:
        _report(text, [made])


@app.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID", help="As `keys list` shows it.")],
    state: State = DEFAULT_STATE,
    registry: RegistryPlace = None,
    reason: Reason = "",
) -> None:
    """Revoke a key; served versions are signed again first.

    An offered version or a candidate that it has signed is withdrawn. The current signing key
    cannot be revoked: switch to another one first.
    """
    from federation.registry import key_rotation
    from streams.runtime.trust import load_private_key

    layout = StateDir(state)
    signer, where = load_private_key(layout.signing_key), _registry(layout, registry)
    made = key_rotation.revoke(where, signer, key, reason)
    if not made:
        say(f"key {key} is revoked already, and no served version is signed by it")
    else:
        _report(f"key {key} is revoked", made)


def _registry(layout: StateDir, place: str | None) -> "Registry":
    from federation.registry.key_rotation import open_registry
    from streams.runtime.trust import load_public_key

    keys = [load_public_key(path) for path in layout.trusted_keys()]
    try:
        return open_registry(place or layout.registry, keys)
    except OSError as exc:
        raise UsageError(f"the registry {place or layout.registry} cannot be read: {exc}") from exc


def _report(text: str, made: "list[Release]") -> None:
    for release in made:
        decision = release.decision
        about = f"{decision.kind} {decision.model or ''}".rstrip()
        say(f"decision {decision.seq}: {about}: {decision.reason}")
    say(f"{text}; {ANNOUNCED}")
