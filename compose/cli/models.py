"""`tidewheel models`: the versions in the registry, and a person's decisions about them; none but
the import of a teacher needs a broker."""

import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from compose.cli.arguments import (
    ANNOUNCED,
    DEFAULT_STATE,
    AsJson,
    Kafka,
    RegistryPlace,
    State,
    TaskArgument,
    broker_of,
    options_of,
    registry_of,
    taking,
)
from compose.launcher.state_dir import StateDir
from compose.reports.terminal import console, moment, print_json, say, table
from streams.contract.errors import UsageError
from streams.contract.task import load_task
from streams.contract.task.metrics import metric_of, named
from streams.fleet.wording import counted, short_runs
from streams.runtime import option

if TYPE_CHECKING:
    from federation.registry.catalog import Version
    from federation.registry.manual import ManualDecision
    from federation.registry.registry import Registry

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A version, as `list` shows it.")]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_models(
    task: TaskArgument,
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="That one alone.")] = None,
    state: State = DEFAULT_STATE,
    registry: RegistryPlace = None,
    json: AsJson = False,
) -> None:
    """List the stored versions, oldest first, with the status of each; of one its manifest, its
    files, and the decisions about it with their evidence."""
    from federation.registry.catalog import versions

    loaded = load_task(task)
    where = registry_of(loaded, state, registry)
    if model is not None:
        _show(where, model, json=json)
        return
    found = versions(where)
    if json:
        print_json([asdict(version) for version in found])
        return
    if not found:
        say(f"{where.where} has no version of {loaded.id}: `prepare` and `up` train the first one")
        return
    metric = named(metric_of(loaded).name)
    held_out = f"{metric} held-out"
    columns = ("version", "made", "base", "from", held_out, "answers in", "size", "key", "state")
    title = f"{loaded.id}: {metric} on the segments of held-out devices by which the gate decides"
    rows = (
        (
            one.model,
            moment(one.created_us),
            one.base or "-",
            _origin(one),
            "-" if one.held_out is None else f"{one.held_out:.3g}",
            one.answers_in or "-",
            f"{one.size:,}",
            one.key or "-",
            one.problem or one.holds,
        )
        for one in found
    )
    console().print(table(title, columns, rows))


@app.command("import")
def import_model(
    task: TaskArgument,
    file: Annotated[
        Path,
        typer.Argument(
            help="The state dict of the task's model, as safetensors or as torch saves it; of a "
            "task whose model is an OnnxFile another file of ONNX or TorchScript."
        ),
    ],
    state: State = DEFAULT_STATE,
    registry: RegistryPlace = None,
    teacher: Annotated[
        bool, typer.Option("--teacher", help="It is the teacher's: offered to the workers.")
    ] = False,
    kafka: Kafka = None,
) -> None:
    """Offer a model that was made elsewhere as the next candidate: signed, judged by the gate on
    the held-out devices' segments, then by its canary. Exits 1 if the gate refuses it. With
    --teacher it is the next teacher: signed, announced on Kafka, and taken by the workers between
    two commits.
    """
    from federation.bootstrap.replacement import import_candidate, import_teacher
    from streams.runtime.failpoints import read_failpoint
    from streams.runtime.trust import load_private_key

    loaded, key = load_task(task), load_private_key(StateDir(state).signing_key)
    where = registry_of(loaded, state, registry)
    if teacher:
        say("\n".join(import_teacher(loaded, where, key, file, broker_of(state, kafka))))
        return
    if kafka is not None:
        raise UsageError("--kafka is for --teacher: the controller announces a candidate")
    verdict, model = import_candidate(loaded, where, key, file, read_failpoint(os.environ))
    if model is None:
        say(f"{file} is refused by the gate: {verdict.reason}")
        raise typer.Exit(1)
    say(f"{model} waits for its canary: {verdict.reason}")
    if (before := where.desired().offered) is not None:
        say(f"{before.model} is in its canary before it; if it is released, this one is dropped")


def _origin(version: "Version") -> str:
    if version.run:
        return short_runs(f"{version.run}, round {version.round}")
    return version.source.split()[0] if version.source else "-"


def _show(registry: "Registry", model: str, *, json: bool) -> None:
    from federation.registry.catalog import described

    found = described(registry, model)
    if json:
        print_json(found)
        return
    manifest = found["manifest"]
    say(f"{model}: {found['holds']}; {found['size']:,} bytes, digest {found['digest']}")
    for name, value in manifest.items():
        if name not in ("files", "metrics", "created_us"):
            say(f"  {name:14} {value}")
    say(f"  {'made':14} {moment(manifest['created_us'])}")
    for name, value in sorted(manifest["metrics"].items()):
        say(f"  metric {name} {value:.6g}")
    for entry in manifest["files"]:
        say(f"  file {entry['name']} {entry['size']:,} bytes, sha256 {entry['sha256']}")
    for decision in found["decisions"]:
        when = moment(decision["time_us"])
        say(f"decision {decision['seq']}, {when}: {decision['kind']}: {decision['reason']}")
        for name, value in sorted(decision["evidence"].items()):
            say(f"  {name} {value:.6g}")


@app.command("verify")
def verify(
    task: TaskArgument,
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]")] = None,
    state: State = DEFAULT_STATE,
    registry: RegistryPlace = None,
    trust: Annotated[
        list[Path] | None,
        typer.Option("--trust", help="Another key that devices were started with."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Verify the chain of decisions from the first, and each file that a decision names.

    With MODEL the chain and that version. Prints one line per problem; exits 1 if there is one.
    """
    from federation.registry.catalog import verify as look
    from streams.runtime.trust import load_public_key

    where = registry_of(load_task(task), state, registry)
    given = [load_public_key(path) for path in trust or []]
    report = look(replace(where, trusted=[*where.trusted, *given]), model)
    if json:
        print_json(asdict(report))
    else:
        for line in report.problems:
            say(line)
        for line in report.notes:
            say(f"note: {line}")
        verdict = counted(len(report.problems), "problem") if report.problems else "no problems"
        say(f"{report.decisions} decisions, {report.models} models: {verdict}")
    raise typer.Exit(1 if report.problems else 0)


# --- decisions of a person -----------------------------------------------------------------------


@dataclass(frozen=True)
class Decisive:
    """The options of a decision."""

    task: str
    state: Path = DEFAULT_STATE
    registry: str | None = None
    reason: str = ""
    yes: Annotated[bool, option("Do not ask.")] = False

    def decide(self, decide: Any, more: str = "") -> None:
        """Make a decision, if it is confirmed; `more` is what changes beside what it says."""
        from federation.registry.key_rotation import settled
        from streams.runtime.trust import load_private_key

        def agree(text: str) -> None:
            if self.yes:
                return
            if not sys.stdin.isatty():
                raise UsageError(f"{text}{more}; without a terminal to confirm it on, use --yes")
            if not typer.confirm(f"{text}{more}. Go on?"):
                raise typer.Exit(1)

        where = registry_of(load_task(self.task), self.state, self.registry)
        key = load_private_key(StateDir(self.state).signing_key)
        outcome: ManualDecision = settled(lambda: decide(where, key, self.reason, agree))
        if outcome.made is None:
            say(outcome.text)
        else:
            say(f"decision {outcome.made.decision.seq}: {outcome.text}; {ANNOUNCED}")

    @property
    def moved(self) -> str:
        devices = len(load_task(self.task).device_names("fleet"))
        return f": up to {devices} devices of the task's fleet change"


def promote(options: Decisive, model: Model) -> None:
    """Let all devices serve a version, even a withdrawn one; another offered version is
    withdrawn."""
    from federation.registry import manual

    options.decide(
        lambda where, key, *more: manual.promote(where, key, model, *more), options.moved
    )


def rollback(
    options: Decisive,
    to: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The version to go back to.")
    ] = None,
) -> None:
    """Withdraw the offered version; without one, go back from the stable version to the one before.

    A second call in a row does nothing; --to goes further back.
    """
    from federation.registry import manual

    options.decide(lambda where, key, *more: manual.roll_back(where, key, to, *more), options.moved)


def rollout(
    options: Decisive,
    what: Annotated[
        Literal["pause", "resume"], typer.Argument(metavar="pause|resume", help="What to do.")
    ],
) -> None:
    """Pause the rollout: keep the offered version at its stage until `resume`, which continues from
    there; its time limit begins again.

    Devices change nothing. The controller still takes the version back if it is worse. No run
    starts meanwhile.
    """
    from federation.registry import manual

    options.decide(manual.pause if what == "pause" else manual.resume)


for made in (promote, rollback, rollout):
    app.command(made.__name__)(taking(made, options_of(Decisive), lambda given: Decisive(**given)))


@app.command("prune")
def prune(
    task: TaskArgument,
    keep: Annotated[int, typer.Option(min=1, help="Number of the newest versions to keep.")],
    state: State = DEFAULT_STATE,
    registry: RegistryPlace = None,
    json: AsJson = False,
) -> None:
    """Remove the bytes of versions that are not needed; their decisions stay.

    The stable, offered and waiting versions stay, their bases, and the target of a rollback.
    """
    from federation.registry import manual

    where = registry_of(load_task(task), state, registry)
    gone = manual.prune(where, keep)
    if json:
        print_json({"removed": gone})
        return
    lines = [f"{model} is removed" for model in gone]
    say("\n".join(lines) or "nothing to remove")
