"""Each kind of tampering with a registry is found and named."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from federation.registry import key_rotation
from federation.registry.catalog import verify
from federation.registry.registry import Registry
from streams.contract.artifact import key_id
from streams.contract.decisions import Decision, Release, sign
from tests.rig.made_up.registries import NEW, OLD, STRANGER, model, offer, registry_in, serve

OLD_ID = key_id(OLD.public_key())


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Six decisions: two versions served, a teacher, another on offer, and a rotation up to
    where the new key signs. With a delta."""
    made = registry_in(tmp_path / "registry")
    first = model(made, 1)
    serve(made, first)
    second = model(made, 2)
    serve(made, second)
    model(made, 3, kind="teacher")
    made.offer_teacher(OLD, "a test")
    offer(made, model(made, 4, base=second.model))
    made.delta(second.model, first.model)
    key_rotation.trust(made, OLD, NEW.public_key())
    key_rotation.hand_over(made, NEW)
    return made


def path_of(registry: Registry, seq: int) -> Path:
    return registry.folder / "history" / f"{seq:08d}.json"


def rewritten(registry: Registry, seq: int, key: object, **fields: object) -> None:
    """Another decision stands there, signed by `key`."""
    release = Release.decode(path_of(registry, seq).read_bytes())
    changed = Decision.of_fields({**release.decision.fields(), **fields})
    path_of(registry, seq).write_bytes(sign(changed, key).encode())  # type: ignore[arg-type]


def edited(registry: Registry, seq: int) -> None:
    """The text is another one under the signature of the first."""
    release = Release.decode(path_of(registry, seq).read_bytes())
    text = release.text.replace('"reason":"a test"', '"reason":"another"')
    assert text != release.text
    path_of(registry, seq).write_bytes(release.replace(text=text).encode())


def version(registry: Registry, number: int) -> Path:
    return next((registry.folder / "models").glob(f"{number}-*.twa"))


def test_a_sound_registry_has_no_problems(registry: Registry) -> None:
    report = verify(registry)
    assert (report.problems, report.notes) == ([], [])
    assert (report.decisions, report.models) == (6, 3)
    key_rotation.revoke(registry, NEW, OLD_ID)
    assert verify(registry).problems == []


Tamper = Callable[[Registry], object]


@pytest.mark.parametrize(
    ("tamper", "text"),
    [
        (lambda r: edited(r, 2), "00000002.json: signature"),
        (lambda r: rewritten(r, 2, STRANGER), "which is not trusted here"),
        (lambda r: rewritten(r, 2, OLD, reason="x"), "decision 3 does not follow"),
        (lambda r: rewritten(r, 1, STRANGER), "00000001.json: untrusted-key"),
        (lambda r: rewritten(r, 4, NEW), "00000004.json: untrusted-key"),  # before it was trusted
        (lambda r: rewritten(r, 3, OLD, task="other"), "the decision is about task other"),
        (lambda r: rewritten(r, 3, OLD, task_version=2), "is of version 2 of task"),
        (lambda r: path_of(r, 3).unlink(), "decision 4 does not follow"),
        (lambda r: path_of(r, 1).unlink(), "decision 2 does not follow"),
        (lambda r: path_of(r, 3).rename(path_of(r, 9)), "decision 4 does not follow"),
        (lambda r: path_of(r, 6).rename(path_of(r, 9)), "it holds decision 6"),
        (lambda r: path_of(r, 3).write_bytes(b"{"), "00000003.json: bad-document"),
        (
            lambda r: version(r, 1).unlink(),
            "its file is missing, and `tidewheel models prune` did not remove it",
        ),
        (lambda r: version(r, 2).unlink(), "its file is missing, and it is needed"),
        (lambda r: version(r, 2).write_bytes(version(r, 1).read_bytes()), "its file holds 1-"),
        (lambda r: version(r, 2).write_bytes(version(r, 2).read_bytes()[:-1]), "truncated"),
        (
            lambda r: (r.folder / "models" / "x.twa").write_bytes(b""),
            "x.twa is not the file of a model version",
        ),
        (lambda r: (r.folder / "teacher.twa").unlink(), "teacher.twa is missing"),
        (lambda r: model(r, 9, kind="teacher"), "teacher.twa holds 9-"),
        (lambda r: (r.folder / "teacher.twa").write_bytes(b"x"), "teacher.twa: truncated"),
        (
            lambda r: next((r.folder / "deltas").glob("*")).write_bytes(b"x"),
            "delta: not a delta: the magic bytes are missing",
        ),
    ],
)  # fmt: skip
def test_tampering_is_named(registry: Registry, tamper: Tamper, text: str) -> None:
    tamper(registry)
    problems = verify(Registry(registry.place, "tiny", 1, registry.trusted)).problems
    assert any(text in line for line in problems), problems
    assert all("\n" not in line for line in problems)


def test_a_file_that_no_decision_names_is_noted(registry: Registry) -> None:
    stray = model(registry, 9)
    report = verify(registry)
    assert (report.problems, report.notes) == ([], [f"model {stray.model} is in no decision"])
    path = registry.folder / "models" / f"{stray.model}.twa"
    path.write_bytes(path.read_bytes()[:-1])
    assert "truncated" in verify(registry).problems[0]


def test_a_version_by_a_key_that_did_not_count_is_found(registry: Registry) -> None:
    bad = Registry(registry.place, "tiny", 1, [OLD.public_key(), STRANGER.public_key()])
    ref = model(bad, 9, STRANGER)
    after = bad.desired().replace(stable=ref)
    bad.decide(NEW, "served", after, bad.last(), model=ref.model)
    assert verify(bad).problems == []  # a key that devices were started with
    (problem,) = verify(Registry(registry.place, "tiny", 1, [OLD.public_key()])).problems
    assert f"model {ref.model}: untrusted-key" in problem
    key_rotation.trust(bad, NEW, STRANGER.public_key())
    (problem,) = verify(Registry(registry.place, "tiny", 1, [OLD.public_key()])).problems
    assert "was not trusted at decision 7" in problem


def test_one_version_alone(registry: Registry) -> None:
    version(registry, 1).unlink()
    name = version(registry, 2).stem
    report = verify(registry, name)
    assert (report.problems, report.models) == ([], 1)
    (problem,) = verify(registry, "9-00000000").problems
    assert "no decision names it" in problem
    assert json.dumps(problem)


def test_an_empty_registry_is_told(tmp_path: Path) -> None:
    assert verify(registry_in(tmp_path)).problems == [f"{tmp_path} has no history"]
