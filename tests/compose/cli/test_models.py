"""`tidewheel models` on a registry in a state folder, and in a bucket."""

import json
import uuid
from pathlib import Path

import pytest

from compose.launcher.state_dir import StateDir
from federation.registry.registry import Registry
from streams.contract.decisions import Ref
from streams.runtime.trust import create_key
from tests.compose.cli.test_cli import TINY, fails, tidewheel
from tests.rig.made_up.registries import model, offer, serve, wait


@pytest.fixture
def registry(tmp_path: Path, request: pytest.FixtureRequest) -> Registry:
    """That of the state folder; of the parameter `s3` one in a bucket, whose URL is in `place`."""
    layout, place = StateDir(tmp_path / ".tidewheel"), ""
    if getattr(request, "param", "folder") == "s3":
        request.getfixturevalue("s3_environ")
        place = f"s3://models/{uuid.uuid4().hex}"
        (tmp_path / "place").write_text(place)
    key = create_key(layout.signing_key)
    return Registry(place or layout.registry, "tiny", 1, [key.public_key()])


@pytest.mark.usefixtures("s3_environ")
def test_prepare_makes_the_first_version_where_the_registry_is(tmp_path: Path) -> None:
    place = f"s3://models/{uuid.uuid4().hex}"
    done = tidewheel("prepare", TINY, folder=tmp_path, TIDEWHEEL_REGISTRY=place)
    assert done.returncode == 0, done.stderr
    shown = tidewheel("models", "list", TINY, "--registry", place, "--json", folder=tmp_path)
    [version] = json.loads(shown.stdout)
    assert version["holds"] == "stable"
    assert f"devices   {place}/models/{version['model']}.twa and " in done.stdout
    assert not (tmp_path / ".tidewheel" / "registry").exists()
    found = tidewheel("models", "verify", TINY, "--registry", place, folder=tmp_path)
    assert found.returncode == 0, found.stderr


everywhere = pytest.mark.parametrize("registry", ["folder", "s3"], indirect=True)


def placed(folder: Path) -> dict[str, str]:
    place = folder / "place"
    return {"TIDEWHEEL_REGISTRY": place.read_text()} if place.exists() else {}


@pytest.fixture
def refs(tmp_path: Path, registry: Registry) -> list[Ref]:
    """Two served one after the other, a third on offer."""
    key = create_key(tmp_path / ".tidewheel" / "keys" / "signing.pem")
    found = [model(registry, n, key, metrics={"held_out": n / 10}) for n in (1, 2, 3)]
    serve(registry, found[0], key)
    serve(registry, found[1], key)
    offer(registry, found[2], key)
    return found


def told(folder: Path, *words: str) -> str:
    verb, *rest = words
    done = tidewheel("models", verb, TINY, *rest, folder=folder, **placed(folder))
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


@everywhere
def test_versions_are_listed_and_shown(tmp_path: Path, refs: list[Ref]) -> None:
    first, second, third = (ref.model for ref in refs)
    rows = json.loads(told(tmp_path, "list", "--json"))
    assert [(row["model"], row["holds"]) for row in rows] == [
        (first, "-"), (second, "stable"), (third, "offered in stage 1"),
    ]  # fmt: skip
    assert "offered in stage 1" in told(tmp_path, "list")
    shown = json.loads(told(tmp_path, "list", third, "--json"))
    assert (shown["manifest"]["number"], shown["decisions"][0]["kind"]) == (3, "stage")
    text = told(tmp_path, "list", second)
    assert f"{second}: stable" in text
    assert "served: a test" in text


def test_a_candidate_that_was_dropped_is_listed_as_dropped(
    tmp_path: Path, registry: Registry, refs: list[Ref]
) -> None:
    key = create_key(StateDir(tmp_path / ".tidewheel").signing_key)
    fourth = model(registry, 4, key)
    wait(registry, fourth, key)
    after = registry.desired().replace(candidate=None)
    why = f"its base is {refs[0].model}, but {refs[1].model} is served now"
    last = registry.last()
    registry.decide(key, "dropped", after, last, model=fourth.model, reason=why)
    rows = {row["model"]: row["holds"] for row in json.loads(told(tmp_path, "list", "--json"))}
    assert (rows[refs[0].model], rows[fourth.model]) == ("-", f"dropped: {why}")
    assert f"{fourth.model}: dropped: {why}" in told(tmp_path, "list", fourth.model)


def test_a_registry_without_a_version_says_so(tmp_path: Path) -> None:
    create_key(tmp_path / ".tidewheel" / "keys" / "signing.pem")
    done = tidewheel("models", "list", TINY, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "has no version of tiny.v1: `prepare` and `up` train the first one" in done.stdout


@everywhere
def test_versions_are_moved_and_removed_by_hand(
    tmp_path: Path, registry: Registry, refs: list[Ref]
) -> None:
    first, second, third = (ref.model for ref in refs)
    unasked = tidewheel("models", "rollback", TINY, folder=tmp_path, **placed(tmp_path))
    fails(unasked, 2, f"{third} is withdrawn", "up to 6 devices", "--yes")
    text = told(tmp_path, "rollback", "--reason", "late", "--yes")
    assert f"decision 4: {third} is withdrawn" in text
    assert "within 2 s" in text
    assert "nothing to do" in told(tmp_path, "rollback")
    assert "served by all devices" in told(tmp_path, "rollback", "--to", first, "--yes")
    done = tidewheel("models", "promote", TINY, third, folder=tmp_path, **placed(tmp_path))
    fails(done, 2, "--yes")
    assert "served by all devices" in told(tmp_path, "promote", third, "--yes")
    assert "nothing to do" in told(tmp_path, "promote", third)
    last = registry.last()
    assert last is not None
    assert (last.decision.kind, last.decision.seq, last.decision.reason) == ("served", 6, "manual")
    assert f"{second} is removed" in told(tmp_path, "prune", "--keep", "1")
    assert told(tmp_path, "prune", "--keep", "1") == "nothing to remove\n"
    assert "no problems" in told(tmp_path, "verify")
    assert first in registry.models()


def test_a_rollout_is_paused_and_resumed_by_hand(
    tmp_path: Path, registry: Registry, refs: list[Ref]
) -> None:
    third = refs[2].model
    unasked = tidewheel("models", "rollout", TINY, "pause", folder=tmp_path)
    fails(unasked, 2, f"{third} stays at stage 1", "no device changes", "--yes")
    text = told(tmp_path, "rollout", "pause", "--reason", "look first", "--yes")
    assert text.startswith(f"decision 4: {third} stays at stage 1, until it is")
    assert "within 2 s" in text
    assert "paused already, manual: look first: nothing to do" in told(tmp_path, "rollout", "pause")
    assert "offered in stage 1, paused" in told(tmp_path, "list")
    resume = ("rollout", "resume")
    unasked = tidewheel("models", "rollout", TINY, "resume", folder=tmp_path)
    fails(unasked, 2, "time limit", "--yes")
    assert f"decision 5: {third} goes on from stage 1" in told(tmp_path, *resume, "--yes")
    assert "nothing to resume" in told(tmp_path, *resume)
    assert [d.kind for d in registry.decisions()][3:] == ["held", "stage"]


def test_problems_are_one_line_each_and_exit_1(tmp_path: Path, refs: list[Ref]) -> None:
    assert "3 decisions, 3 models: no problems" in told(tmp_path, "verify")
    folder = tmp_path / ".tidewheel" / "registry" / "models"
    (folder / f"{refs[0].model}.twa").write_bytes(b"x")
    done = tidewheel("models", "verify", TINY, folder=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[-1] == "3 decisions, 3 models: 1 problem"
    done = tidewheel("models", "verify", TINY, "--json", folder=tmp_path)
    assert done.returncode == 1
    assert refs[0].model in json.loads(done.stdout)["problems"][0]
    told(tmp_path, "verify", refs[1].model)


def test_what_is_wrong_is_one_line(tmp_path: Path, refs: list[Ref]) -> None:
    fails(tidewheel("models", "list", TINY, "9-00000000", folder=tmp_path), 1, "no model 9-")
    done = tidewheel("models", "promote", TINY, "9-00000000", folder=tmp_path)
    fails(done, 2, "9-00000000", "models list")
    done = tidewheel("models", "promote", TINY, "../x", folder=tmp_path)
    fails(done, 2, "is not a name of a model version")
    done = tidewheel("models", "list", TINY, "--state", "none", folder=tmp_path)
    fails(done, 2, "none/keys/signing.pub")
    done = tidewheel("models", "rollback", TINY, "--registry", "empty", folder=tmp_path)
    fails(done, 2, "nothing is decided in empty", "tidewheel prepare")
