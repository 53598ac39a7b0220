"""`tidewheel keys` on a state folder: there is a key to sign with whenever it is killed."""

import json
import stat
import uuid
from pathlib import Path
from signal import SIGKILL

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from compose.cli.arguments import trusted_keys
from compose.launcher.state_dir import StateDir
from federation.registry.key_rotation import keys_of, open_registry
from federation.registry.registry import Registry
from streams.contract.artifact import key_id
from streams.contract.decisions import sign
from streams.runtime.trust import (
    create_key,
    load_private_key,
    load_public_key,
    write_private_key,
    write_public_key,
)
from tests.compose.cli.test_cli import fails, tidewheel
from tests.rig.made_up.registries import NEW, OLD, model, serve
from tests.rig.unwrap import unwrap

STATE = ".tidewheel"


@pytest.fixture
def layout(tmp_path: Path) -> StateDir:
    """A state folder whose registry serves one version."""
    made = StateDir(tmp_path / STATE)
    key = create_key(made.signing_key)
    registry = Registry(made.registry, "tiny", 1, [key.public_key()])
    serve(registry, model(registry, 1, key), key)
    return made


def told(layout: StateDir, folder: Path, *words: str | Path) -> str:
    done = tidewheel("keys", *words, folder=folder)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def in_use(layout: StateDir) -> str:
    return key_id(load_private_key(layout.signing_key).public_key())


def registry_of(layout: StateDir) -> Registry:
    return open_registry(layout.registry, [load_public_key(p) for p in layout.trusted_keys()])


def spare(layout: StateDir, folder: Path) -> str:
    """A key that nothing has announced; its id."""
    key = Ed25519PrivateKey.generate()
    made = key_id(key.public_key())
    write_private_key(key, folder / f"{made}.pem")
    write_public_key(key.public_key(), folder / f"{made}.pub")
    return made


def trusted_spare(layout: StateDir, folder: Path) -> str:
    """The id of a key that `keys trust` has made."""
    before = {path.stem for path in layout.keys.glob("*.pem")}
    told(layout, folder, "trust")
    [path] = [path for path in layout.keys.glob("*.pem") if path.stem not in before]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key_id(load_public_key(path.with_suffix(".pub"))) == path.stem
    return path.stem


def test_a_rotation_by_the_command_line(tmp_path: Path, layout: StateDir) -> None:
    first = in_use(layout)
    made = spare(layout, layout.keys)
    fails(tidewheel("keys", "use", made, folder=tmp_path), 2, made, "keys trust")
    assert in_use(layout) == first
    path = layout.keys / f"{made}.pem"
    said = told(layout, tmp_path, "trust", path.with_suffix(".pub"))
    assert f"key {made} is trusted; a running controller" in said
    assert "already" in told(layout, tmp_path, "trust", path.with_suffix(".pub"))
    fails(tidewheel("keys", "revoke", first, folder=tmp_path), 2, "is in use", "keys use")
    assert "signs from now on; a running controller" in told(layout, tmp_path, "use", made)
    assert "signs from now on, as before" in told(layout, tmp_path, "use", made)
    assert in_use(layout) == made
    assert {p.stem for p in trusted_keys(layout, None)} == {"signing", first, made}
    said = told(layout, tmp_path, "revoke", first, "--reason", "drill")
    assert f"key {first} is revoked; a running controller" in said
    assert "served 2-" in said
    assert "revoked already" in told(layout, tmp_path, "revoke", first)
    rows = {row["id"]: row for row in json.loads(told(layout, tmp_path, "list", "--json"))}
    assert rows[first] == {
        "id": first, "private": True, "in_use": False, "devices": "revoked",
    }  # fmt: skip
    assert rows[made]["in_use"]
    assert rows[made]["devices"] == "trusted"
    assert first in told(layout, tmp_path, "list")
    assert list(keys_of(registry_of(layout)).active) == [made]
    fails(tidewheel("keys", "use", first, folder=tmp_path), 2, "is revoked")


def test_the_registry_may_be_in_a_bucket(tmp_path: Path, s3_environ: None) -> None:
    layout, place = StateDir(tmp_path / STATE), f"s3://models/{uuid.uuid4().hex}"
    key = create_key(layout.signing_key)
    registry = Registry(place, "tiny", 1, [key.public_key()])
    serve(registry, model(registry, 1, key), key)

    def command(*words: str) -> str:
        done = tidewheel("keys", *words, folder=tmp_path, TIDEWHEEL_REGISTRY=place)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout

    command("trust")
    [made] = [path.stem for path in layout.keys.glob("*.pem") if path.stem != "signing"]
    command("use", made)
    command("revoke", key_id(key.public_key()))
    rows = {row["id"]: row["devices"] for row in json.loads(command("list", "--json"))}
    assert rows == {key_id(key.public_key()): "revoked", made: "trusted"}


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_kill_at_any_step_leaves_a_key_to_sign_with(
    tmp_path: Path, layout: StateDir, step: int
) -> None:
    first = in_use(layout)
    made = trusted_spare(layout, tmp_path)

    point = {"TIDEWHEEL_FAILPOINT": f"keys-step-{step}:1"}
    assert tidewheel("keys", "use", made, folder=tmp_path, **point).returncode == -SIGKILL
    assert in_use(layout) == (first if step < 3 else made)
    for public in trusted_keys(layout, None):
        load_public_key(public)
    keys_of(registry_of(layout)).check(load_private_key(layout.signing_key))
    told(layout, tmp_path, "use", made)
    assert in_use(layout) == made == key_id(load_public_key(layout.public_key))
    assert key_id(load_private_key(layout.keys / f"{first}.pem").public_key()) == first
    last = unwrap(registry_of(layout).last())
    assert last.decision.key == made


def test_a_lost_signing_key_is_replaced_by_one_that_devices_trust(
    tmp_path: Path, layout: StateDir
) -> None:
    made = trusted_spare(layout, tmp_path)
    path = layout.keys / f"{made}.pem"
    first = in_use(layout)
    layout.signing_key.unlink()
    fails(tidewheel("keys", "trust", path.with_suffix(".pub"), folder=tmp_path), 2, "signing.pem")
    told(layout, tmp_path, "use", made)
    assert f"key {first} is revoked" in told(layout, tmp_path, "revoke", first)


@pytest.mark.parametrize("signed", [True, False])
def test_a_revoked_key_in_the_local_registry_is_not_trusted_by_what_starts_there(
    tmp_path: Path, layout: StateDir, caplog: pytest.LogCaptureFixture, signed: bool
) -> None:
    """Whoever can write there adds a decision that names it; it may not even be signed."""
    first = load_private_key(layout.signing_key)
    made = trusted_spare(layout, tmp_path)
    told(layout, tmp_path, "use", made)
    told(layout, tmp_path, "revoke", key_id(first.public_key()))
    assert {p.stem for p in trusted_keys(layout, None)} == {"signing", made}
    registry = registry_of(layout)
    last = unwrap(registry.last())
    raw = {key_id(first.public_key()): first.public_key().public_bytes_raw().hex()}
    standing = last.decision.standing.replace(keys=raw, revoked=[])
    fields = {"seq": last.decision.seq + 1, "prev": last.digest, "standing": standing}
    theft = sign(last.decision.replace(**fields), first)
    if not signed:
        theft = theft.replace(signature="0" * 128)
    registry.store.write(f"history/{theft.decision.seq:08d}.json", theft.encode())
    assert {p.stem for p in trusted_keys(layout, None)} == {"signing"}
    assert "only the signing key is trusted" in caplog.text


def test_what_is_not_there_is_named(tmp_path: Path, layout: StateDir) -> None:
    fails(tidewheel("keys", "trust", "none.pub", folder=tmp_path), 2, "none.pub")
    fails(tidewheel("keys", "use", "nobody", folder=tmp_path), 2, "nobody", "keys list")
    fails(tidewheel("keys", "revoke", "0" * 16, folder=tmp_path), 2, "0" * 16, "keys list")
    done = tidewheel("keys", "use", "nobody", "--state", "other", folder=tmp_path)
    fails(done, 2, "nobody", "other")
    write_public_key(OLD.public_key(), tmp_path / "old.pub")
    (layout.registry / "history" / "00000001.json").unlink()
    fails(tidewheel("keys", "trust", "old.pub", folder=tmp_path), 2, "tidewheel prepare")
    assert NEW is not OLD
