"""`tidewheel models` and `keys` on a registry in a bucket, with the keys of the state folder."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from compose.cli import keys, models
from compose.launcher.state_dir import StateDir
from federation.registry.registry import Registry
from streams.contract.signing import key_id
from streams.runtime.key_files import create_key
from tests.compose.cli.test_cli import TINY
from tests.rig.made_up.registries import model, serve

PLACE = "s3://models/fleet"
Command = Callable[..., str]


@pytest.fixture
def command(tmp_path: Path, s3_environ: None, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command, in this process, on a registry in a bucket; it has to succeed."""
    monkeypatch.chdir(tmp_path)

    def run(group: str, *words: str | Path, code: int = 0) -> str:
        app = {"models": models.app, "keys": keys.app}[group]
        done = CliRunner().invoke(app, [*map(str, words), "--registry", PLACE])
        assert done.exit_code == code, done.output
        return done.stdout

    return run


@pytest.fixture
def key(tmp_path: Path) -> Ed25519PrivateKey:
    return create_key(StateDir(tmp_path / ".tidewheel").signing_key)


@pytest.fixture
def registry(key: Ed25519PrivateKey, s3_environ: None) -> Registry:
    """Has served two versions, one after the other."""
    made = Registry(PLACE, "tiny", 1, [key.public_key()])
    for number in (1, 2):
        serve(made, model(made, number, key), key)
    return made


def stable(registry: Registry) -> str | None:
    ref = registry.desired().stable
    return ref.model if ref else None


def test_versions_are_looked_at_moved_and_removed(
    registry: Registry, key: Ed25519PrivateKey, command: Command
) -> None:
    first, second = registry.models()
    rows = json.loads(command("models", "list", TINY, "--json"))
    assert [(row["model"], row["holds"]) for row in rows] == [(first, "-"), (second, "stable")]
    assert f"{second}: stable" in command("models", "list", TINY, second)
    command("models", "rollback", TINY, "--to", first, "--yes")
    assert stable(registry) == first
    command("models", "promote", TINY, second, "--yes")
    assert stable(registry) == second
    serve(registry, model(registry, 3, key), key)
    assert f"{first} is removed" in command("models", "prune", TINY, "--keep", "1")
    assert first not in registry.models()
    assert "no problems" in command("models", "verify", TINY)


def test_keys_are_trusted_used_and_revoked(
    registry: Registry, key: Ed25519PrivateKey, command: Command, tmp_path: Path
) -> None:
    first = key_id(key.public_key())
    command("keys", "trust")
    [made] = [path.stem for path in (tmp_path / ".tidewheel" / "keys").glob("*.pem")
              if path.stem != "signing"]  # fmt: skip
    command("keys", "use", made)
    command("keys", "revoke", first)
    rows = {row["id"]: row["devices"] for row in json.loads(command("keys", "list", "--json"))}
    assert rows == {first: "revoked", made: "trusted"}
    assert registry.last().decision.key == made  # type: ignore[union-attr]
