"""The summary of a run as a person sees it at the end."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from compose.reports.summary.figures import Summary
from compose.reports.summary.lines import RunLine
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
    table = Table(title=f"{summary.task}: devices and their event account")
    table.add_column("device")
    table.add_column("serves")
    for name in ("before", "after", "produced", "delivered", "dropped", "pending", "scored"):
        table.add_column(name, justify="right")
    for line in summary.devices:
        table.add_row(
            f"{line.device}, earlier" if line.ended else line.device,
            f"{line.last}, kept" if line.kept else line.last,
            share(line.before, line.before_of),
            share(line.after, line.after_of),
            *(str(x) for x in (line.produced, line.delivered, line.dropped, line.pending)),
            str(line.scored),
            style="" if line.balanced else "red",
        )
    table.add_section()
    totals = [summary.total(n) for n in ("produced", "delivered", "dropped", "pending", "scored")]
    before, after = summary.fleet_figure("before"), summary.fleet_figure("after")
    counts = summary.of_fleet("before"), summary.of_fleet("after")
    table.add_row(
        "all",
        "",
        share(before, counts[0]),
        share(after, counts[1]),
        *(str(x) for x in totals),
        style="bold",
    )
    table.caption = (
        f"before, after: {named(summary.row_metric)} of the device's answers by the first and by "
        "the last version, "
        "on the same of its held-out segments where both have answered them (how many)"
    )
    return table


def _figures(summary: Summary) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    rows = {
        "model served": _served(summary),
        f"{named(summary.metric)} on held-out devices": _held_out(summary),
        "by other metrics": _metrics(summary),
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
    if kept := [f"{line.device} {line.kept}" for line in summary.devices if line.kept]:
        rows["kept on devices"] = "\n".join(kept)
    if summary.restarts:
        rows["restarted"] = ", ".join(
            f"{k} {counted(n, 'time')}" for k, n in summary.restarts.items()
        )
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _labels(summary: Summary) -> str:
    """The way of all labels."""
    late = summary.late_labels
    later = (
        f"{late['produced']} became known later: {late['delivered']} sent, {late['pending']} "
        f"pending, {late['dropped']} dropped; "
    )
    return (
        f"{summary.total('truths')} answers have a true label in the data, by which they are "
        f"measured; devices received {summary.total('labels_told')} and keep "
        f"{summary.total('samples')} segments, {summary.total('true_labels')} with a label; "
        f"{later if late else ''}{summary.labels_stored} events in the store have one"
    )


def _held_out(summary: Summary) -> str:
    shares = before_after(summary.held_out_before, summary.held_out_after)
    of = next((run.audit_segments for run in reversed(summary.runs)), 0)
    return f"{shares} on {of} {AUDIT}" if of else shares


def _metrics(summary: Summary) -> str:
    """Of the served versions, on the same segments."""
    served = {d.removeprefix("served ") for d in summary.decisions if d.startswith("served ")}
    passed = [run for run in summary.runs if run.promoted and run.metrics and run.model in served]
    if not passed:
        return "-"
    first, last = passed[0].metrics, passed[-1].metrics
    return ", ".join(
        f"{named(name)} {first[name][0]:.3g} → {after:.3g}"
        for name, (_, after) in last.items()
        if name in first
    )


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
