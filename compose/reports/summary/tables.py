"""The summary of a run as a person sees it at the end."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from compose.reports.summary.figures import Summary
from compose.reports.summary.lines import RunLine
from compose.reports.terminal import table
from streams.contract.task.metrics import named
from streams.fleet.wording import AUDIT, before_after, counted, share, short_runs


def render(summary: Summary, console: Console) -> None:
    """The tables at the end."""
    console.print(_device_table(summary))
    console.print(_figures(summary))
    console.print(
        f"results   {summary.store} (a Delta Lake table)", highlight=False, soft_wrap=True
    )
    console.print(f"look      {summary.sql}", highlight=False, soft_wrap=True, markup=False)
    for warning in summary.warnings:
        console.print(f"[yellow]warning   {escape(warning)}[/yellow]", soft_wrap=True)
    if not summary.balanced:
        wrong = [line.device for line in summary.devices if not line.balanced]
        console.print(f"[red]the event account of {', '.join(wrong)} does not balance[/red]")


def _device_table(summary: Summary) -> Table:
    counts = ("produced", "delivered", "dropped", "pending", "scored")
    right = ("before", "after", *counts)
    made = table(
        f"{summary.task}: devices and their event account", ("device", "serves", *right), (), right
    )
    for line in summary.devices:
        made.add_row(
            f"{line.device}, earlier" if line.ended else line.device,
            f"{line.last}, another answers" if line.instead else line.last,
            share(line.before, line.before_of),
            share(line.after, line.after_of),
            *(str(getattr(line, name)) for name in counts),
            style="" if line.balanced else "red",
        )
    made.add_section()
    figures = [share(summary.fleet_figure(w), summary.of_fleet(w)) for w in ("before", "after")]
    totals = [str(summary.total(name)) for name in counts]
    made.add_row("all", "", *figures, *totals, style="bold")
    made.caption = (
        f"before, after: {named(summary.row_metric)} of the device's answers by the first and by "
        "the last version, on the same of its held-out segments where both have answered them "
        "(how many)"
    )
    return made


def _figures(summary: Summary) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    rows = {
        "model served": _served(summary),
        f"{named(summary.metric)} on held-out devices": _held_out(summary),
        summary.agreement_called: before_after(summary.agreement_before, summary.agreement_after),
        "windows": f"{summary.windows} closed, {summary.windows_late} revised by late events",
        "rounds": f"{summary.rounds} with {summary.admitted} updates admitted, "
        f"{summary.refused} refused, {summary.failed} failed",
        "labels": _labels(summary),
        "runs": "\n".join(_run(run) for run in summary.runs) or "-",
        "releases": ", ".join(summary.decisions) or "-",
        "event account": _account(summary),
        "seconds": ", ".join(f"{name} {s:.1f}" for name, s in summary.phases.items()),
    }
    if instead := [f"{line.device} {line.instead}" for line in summary.devices if line.instead]:
        rows["answer instead"] = "\n".join(instead)
    if summary.restarts:
        rows["restarted"] = ", ".join(
            f"{k} {counted(n, 'time')}" for k, n in summary.restarts.items()
        )
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _labels(summary: Summary) -> str:
    kept, labelled = summary.total("samples"), summary.total("true_labels")
    return (
        f"devices keep {counted(kept, 'segment')}, {labelled} with a true label; "
        f"{counted(summary.labels_stored, 'event')} in the store have one"
    )


def _held_out(summary: Summary) -> str:
    shares = before_after(summary.held_out_before, summary.held_out_after)
    of = next((run.audit_segments for run in reversed(summary.runs)), 0)
    return f"{shares} on {of} {AUDIT}" if of else shares


def _run(run: RunLine) -> str:
    what = f"promoted {run.model}" if run.promoted else "refused by the gate"
    audit = before_after(run.audit_base, run.audit)
    text = short_runs(f"{run.run} {what}: {run.reason}")
    of = f"; {audit} on {run.audit_segments} {AUDIT}"
    return text if run.promoted or run.audit is None else text + of


def _served(summary: Summary) -> str:
    models = dict.fromkeys(model for model in (summary.first_model, summary.stable_model) if model)
    text = " → ".join(models) or "-"
    if summary.last_model not in (None, summary.stable_model):
        text += f"; {summary.last_model} on some devices only"
    return text


def _account(summary: Summary) -> str:
    produced, delivered = summary.total("produced"), summary.total("delivered")
    dropped, pending = summary.total("dropped"), summary.total("pending")
    scored, seen = summary.total("scored"), summary.total("dropped_seen")
    verdict = "balances" if summary.balanced else "DOES NOT BALANCE"
    return (
        f"{produced} produced = {delivered} delivered + {dropped} dropped + {pending} pending; "
        f"{scored} scored + {seen} declared dropped: {verdict}"
    )
