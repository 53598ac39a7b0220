"""`tidewheel models`: the versions in the registry, and a person's decisions about them; none
needs a broker."""

import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from compose.cli.arguments import (
    ANNOUNCED,
    DEFAULT_STATE,
    AsJson,
    Reason,
    RegistryPlace,
    State,
    TaskArgument,
    registry_of,
)
from compose.launcher.state_dir import StateDir
from compose.reports.terminal import console, moment, print_json, say
from streams.contract.errors import UsageError
from streams.contract.task import load_task
from streams.contract.task.metrics import metric_of, named
from streams.fleet.wording import counted, short_runs

if TYPE_CHECKING:
    from federation.registry.manual import ManualDecision

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A version, as `list` shows it.")]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_models(
    task: TaskArgument,
    state: State = DEFAULT_STATE,
    registry: RegistryPlace = None,
    json: AsJson = False,
) -> None:
    """List the stored versions, oldest first, with the status of each."""
    from federation.registry.catalog import versions

    loaded = load_task(task)
    found = versions(registry_of(loaded, state, registry))
    if json:
        print_json([asdict(version) for version in found])
        return
    metric = named(metric_of(loaded).name)
    table = Table("version", "made", "base", "run", f"{metric} held-out", "size", "key", "state")
    for version in found:
        run = f"{version.run}, round {version.round}" if version.run else "-"
        table.add_row(
            version.model,
            moment(version.created_us),
            version.base or "-",
            short_runs(run),
            "-" if version.held_out is None else f"{version.held_out:.3g}",
            f"{version.size:,}",
            version.key or "-",
            version.problem or version.holds,
        )
    console().print(table)


@app.command("show")
def show(
    task: TaskArgument,
    model: Model,
    state: State = DEFAULT_STATE,
    registry: RegistryPlace = None,
    json: AsJson = False,
) -> None:
    """Show a version's manifest, its files, and the decisions about it with their evidence."""
    from federation.registry.catalog import described

    found = described(registry_of(load_task(task), state, registry), model)
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
    from federation.registry.audit import verify as look
    from streams.runtime.key_files import load_public_key

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


@app.command("diff")
def diff(
    task: TaskArgument,
    before: Annotated[str, typer.Argument(metavar="A")],
    after: Annotated[str, typer.Argument(metavar="B")],
    state: State = DEFAULT_STATE,
    registry: RegistryPlace = None,
    json: AsJson = False,
) -> None:
    """Show how two versions differ: manifests, metrics, each tensor, and the size of a delta."""
    from federation.registry.catalog import difference

    found = difference(registry_of(load_task(task), state, registry), before, after)
    if json:
        print_json(found)
        return
    for name, (old, new) in found["manifest"].items():
        say(f"{name:14} {old} -> {new}")
    for title, rows, form in (
        ("metric", found["metrics"], lambda pair: pair),
        ("tensor", found["tensors"], lambda change: [change["largest"], change["mean"]]),
    ):
        columns = (before, after) if title == "metric" else ("largest change", "mean change")
        table = Table(title, *columns)
        for name, value in rows.items():
            table.add_row(name, *(_number(number) for number in form(value)))
        if rows:
            console().print(table)
    say(f"files that differ: {', '.join(found['files']) or 'none'}")
    say(f"{found['delta_bytes']:,} bytes as a delta, {found['whole_bytes']:,} complete")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


# --- decisions of a person -----------------------------------------------------------------------


@app.command()
def promote(
    task: TaskArgument,
    model: Model,
    state: State = DEFAULT_STATE,
    registry: RegistryPlace = None,
    reason: Reason = "",
    yes: Yes = False,
) -> None:
    """Let all devices serve a version, even a withdrawn one; another offered version is
    withdrawn."""
    from federation.registry import manual

    agree = _agreement(yes, _moved(task))
    _decide(task, state, registry, lambda r, key: manual.promote(r, key, model, reason, agree))


@app.command()
def rollback(
    task: TaskArgument,
    to: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The version to go back to.")
    ] = None,
    state: State = DEFAULT_STATE,
    registry: RegistryPlace = None,
    reason: Reason = "",
    yes: Yes = False,
) -> None:
    """Withdraw the offered version; without one, go back from the stable version to the one before.

    A second call in a row does nothing; --to goes further back.
    """
    from federation.registry import manual

    agree = _agreement(yes, _moved(task))
    _decide(task, state, registry, lambda r, key: manual.roll_back(r, key, to, reason, agree))


@app.command()
def pause(
    task: TaskArgument,
    state: State = DEFAULT_STATE,
    registry: RegistryPlace = None,
    reason: Reason = "",
    yes: Yes = False,
) -> None:
    """Keep the offered version at its stage until `resume`; devices change nothing.

    The controller still takes it back if it is worse. No run starts meanwhile.
    """
    from federation.registry import manual

    agree = _agreement(yes)
    _decide(task, state, registry, lambda r, key: manual.pause(r, key, reason, agree))


@app.command()
def resume(
    task: TaskArgument,
    state: State = DEFAULT_STATE,
    registry: RegistryPlace = None,
    reason: Reason = "",
    yes: Yes = False,
) -> None:
    """Continue a paused rollout from its stage, whose time limit begins again."""
    from federation.registry import manual

    agree = _agreement(yes)
    _decide(task, state, registry, lambda r, key: manual.resume(r, key, reason, agree))


def _moved(task: str) -> str:
    devices = len(load_task(task).device_names("fleet"))
    return f": up to {devices} devices of the task's fleet change"


def _agreement(yes: bool, more: str = "") -> Callable[[str], None]:
    """Ask on a terminal before a decision is made; elsewhere it needs --yes. `more` is what changes
    beside what the decision says."""

    def agree(text: str) -> None:
        if yes:
            return
        what = f"{text}{more}"
        if not sys.stdin.isatty():
            raise UsageError(f"{what}; there is no terminal to confirm it on: use --yes")
        if not typer.confirm(f"{what}. Go on?"):
            raise typer.Exit(1)

    return agree


def _decide(task: str, state: Path, place: str | None, decide: Any) -> None:
    from federation.registry.key_rotation import settled
    from streams.runtime.key_files import load_private_key

    where = registry_of(load_task(task), state, place)
    key = load_private_key(StateDir(state).signing_key)
    outcome: ManualDecision = settled(lambda: decide(where, key))
    if outcome.made is None:
        say(outcome.text)
    else:
        say(f"decision {outcome.made.decision.seq}: {outcome.text}; {ANNOUNCED}")


@app.command("prune")
def prune(
    task: TaskArgument,
    keep: Annotated[int, typer.Option(min=1, help="Number of the newest versions to keep.")],
    state: State = DEFAULT_STATE,
    registry: RegistryPlace = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list them.")] = False,
    json: AsJson = False,
) -> None:
    """Remove the bytes of versions that are not needed; their decisions stay.

    The stable, offered and waiting versions stay, their bases, and the target of a rollback.
    """
    from federation.registry import manual

    where = registry_of(load_task(task), state, registry)
    gone = manual.to_prune(where, keep) if dry_run else manual.prune(where, keep)
    if json:
        print_json({"removed": gone, "dry_run": dry_run})
        return
    for model in gone:
        say(f"{model} {'would be removed' if dry_run else 'is removed'}")
    if not gone:
        say("nothing to remove")
