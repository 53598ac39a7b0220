"""A task on one machine, from its file to the running loop: `tidewheel new`, `check`, `prepare` and
`up`."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from compose.cli.arguments import (
    DEFAULT_STATE,
    AsJson,
    RegistryPlace,
    State,
    TaskArgument,
    check_strategy,
    options_of,
    shares_of,
    taking,
)
from compose.launcher.commands import UpOptions
from compose.launcher.state_dir import StateDir
from compose.reports.terminal import console, print_json, say
from streams.contract.errors import UsageError
from streams.contract.task import absolute_reference, load_task

Kind = Literal["classification", "regression", "events"]


def new(
    name: Annotated[str, typer.Argument(help="The task's name; the file is NAME.py.")],
    kind: Annotated[
        Kind,
        typer.Option(
            help="Whether the model chooses a class, predicts numbers, or chooses a class of "
            "irregular events that have categories and a truth that is known later."
        ),
    ] = "classification",
) -> None:
    """Write a commented task file that runs as it is, on made-up readings."""
    from streams.contract.task import NAME

    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a task's name: write lower-case letters, digits, - and _, a letter "
            "first, without .py"
        )
    path = Path(f"{name.replace('-', '_')}.py")
    if path.exists():
        raise UsageError(f"{path} exists already: choose another name, or remove it")
    path.write_text(_render(name, kind))
    say(f"{path} is written: put your readings, classes and model into it, then")
    say(f"    tidewheel check {path}:task")
    say(f"    tidewheel up {path}:task")


def check(task: TaskArgument, json: AsJson = False) -> None:
    """Look at a task before its first run: readings, labels, rates, model, sizes.

    Each finding comes with advice. Exits 1 if something cannot work, 0 with warnings otherwise.
    """
    from compose.preflight import check_task, import_finding, show

    check_strategy(loaded := load_task(task))
    report = check_task(loaded)
    if (found := import_finding(task)) is not None:
        report = replace(report, findings=[found, *report.findings])
    if json:
        print_json(asdict(report))
    else:
        show(report, console())
    raise typer.Exit(1 if report.failed else 0)


def schema(task: TaskArgument) -> None:
    """Print the JSON Schema (draft 2020-12) of the events that other programs may send as JSON to
    the task's topic `events`."""
    from streams.contract.events.json_form import event_json_schema

    print_json(event_json_schema(load_task(task)))


def run_up(options: UpOptions) -> None:
    """Run everything on this machine: broker, worker, devices, Flower, controller, console.

    Restarts processes that die. Ctrl-C drains the devices, prints the event account and stops all
    processes. Exits 1 if the event account does not balance.
    """
    from compose.launcher.up import Up

    shares_of(options.stages)
    check_strategy(load_task(options.task), options.strategy)
    raise typer.Exit(Up(options, console(stderr=options.json)).run())


up = taking(run_up, options_of(UpOptions), lambda given: UpOptions(**given))


def prepare(
    task: TaskArgument,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Also create the TLS certificate of the proxy in front of the SuperLink, which "
            "devices reach by this name or address; one that ends within a month is renewed.",
        ),
    ] = None,
    first: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="The first model's weights, which is then not trained: safetensors, or a state "
            "dict as torch saves it; default: Task.first_model.",
        ),
    ] = None,
    state: State = DEFAULT_STATE,
    registry: RegistryPlace = None,
) -> None:
    """Create the signing key, the first model and the teacher; `up` does this too.

    Training is cached. Prints the files that workers and devices on other machines need.
    """
    from compose.launcher.certificates import proxy_certificate
    from compose.launcher.preparation import look, make_models

    reference, layout = absolute_reference(task), StateDir(state)
    loaded = load_task(reference)
    look(loaded, say)
    if registry is not None and "://" not in registry:  # before the training
        Path(registry).mkdir(parents=True, exist_ok=True)
    model = make_models(reference, loaded, layout, say, first, registry)
    where = (registry or str(layout.registry)).rstrip("/")
    say(f"devices   {where}/models/{model}.twa and {layout.public_key}")
    say(f"workers   {where}/teacher.twa and {layout.public_key}")
    if host is not None:  # signed by the CA whose certificate every SuperNode gets
        tls = proxy_certificate(layout.keys, host)
        say(f"proxy     {tls.certificate} and {tls.key}; devices trust {tls.ca}")


# --- the file that `new` writes -----------------------------------------------------------------

TEMPLATE = '''"""The task {name}: what a fleet learns. `tidewheel check {file}:task` looks at it."""

{head}


def devices():
    """Who there is. pilot: trains the first model; lab: trains the larger teacher; fleet: your
    devices; held-out: never trained on, candidates are judged by them."""
    return [
        Device("pilot-1", "pilot"),
        Device("lab-1", "lab"),
        *(Device(f"device-{{n}}", "fleet") for n in range(1, 4)),
        Device("held-out-1", "held-out"),
    ]


def readings(device):
    """One Reading after the other: time in microseconds, a value for each channel, and the label
    where it is known (else None). Replace this with your data: a CSV file, a database, a sensor."""
    draw = random.Random(device)
{readings}


def build_model():
    """(batch, channels, samples) -> (batch, outputs). Import torch here: devices have none."""
{model}


task = Task(
    name="{name}",
    version=1,
{kind}
    build_model=build_model,
    readings=readings,
    source="recorded",  # "live" for a sensor: times are then dates, and nothing is repeated
    devices=devices,
    window=Tumbling(10),  # events of 10 s of event time are scored together by the teacher
    lateness_s=2,
    upload="segment",  # "prediction": raw data never leaves the device
)
'''


def _sensor(label: str, outputs: int, kind: str) -> dict[str, str]:
    return {
        "head": """\
import math
import random

from tidewheel import Device, Reading, Segment, Task, Tumbling""",
        "readings": f"""\
    gain, offset = (1.0, 0.0) if device == "pilot-1" else (0.6, 0.5)  # so there is much to learn
    level = 0.0
    for i in range(6000):
        level = 0.98 * level + draw.gauss(0, 0.2)
        x = gain * level + offset + draw.gauss(0, 0.1)
        y = math.sin(i / 20) + draw.gauss(0, 0.1)
        yield Reading(i * 100_000, (x, y), {label})""",
        "model": f"""\
    from torch import nn

    return nn.Sequential(
        nn.Conv1d(2, 32, 5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, {outputs}),  # a filter of 5 has 16 places in 20 readings
    )""",
        "kind": f"""\
    channels=("x", "y"),
    rate_hz=10,  # readings a second; None where they come at no fixed rate
    segment=Segment(samples=20, hop=10),  # the model sees 20 readings, a new segment every 10
    {kind}""",
    }


CLASSES = """classes=("low", "high"),  # a reading's label is an index into these"""
TARGETS = """targets=("level",),  # a reading's label is one number for each of these
    tolerance=0.2,  # an answer that is off by no more counts as right"""
EVENTS = {
    "head": """\
import collections
import random

from tidewheel import Category, Device, Outcome, Reading, Segment, Task, Time, Training, Tumbling

MERCHANT = Category("merchant", size=200)  # names are hashed to an index below 200
BEGAN_US, KNOWN_AFTER_US = 1_760_000_000_000_000, 300_000_000


def is_fraud(amount, merchant):
    return float(amount > 3 + merchant % 8 / 2)  # made up: one event in twelve""",
    "readings": '''\
    shops = 10 if device == "pilot-1" else 40  # so there is much to learn
    time_us = BEGAN_US
    for _ in range(3000):
        time_us += round(draw.expovariate(1) * 1_000_000)  # one a second, at no fixed rate
        amount, shop = draw.gauss(3, 1), f"shop {draw.randrange(shops)}"
        yield Reading(time_us, (amount, shop), is_fraud(amount, MERCHANT.index_of(shop)))


def outcomes(device, answered):
    """The truth of an event when it is known, here five minutes later. Ask your database."""
    waiting = collections.deque()
    for now in answered:  # one at a time, as the device answers
        waiting.append(now)
        while waiting[0].last_us <= now.last_us - KNOWN_AFTER_US:
            event = waiting.popleft()
            truth = is_fraud(*event.segment[:2, -1])  # (channels, samples)
            yield Outcome(event.first_us, event.last_us, truth, seq=event.seq)''',
    "model": """\
    import torch
    from torch import nn

    class Events(nn.Module):
        def __init__(self):
            super().__init__()
            self.merchants = nn.Embedding(MERCHANT.size, 4)
            self.head = nn.Sequential(nn.Linear(7, 16), nn.ReLU(), nn.Linear(16, 2))

        def forward(self, x):
            now = x[:, :, -1]  # (batch, channels)
            numbers = (now[:, :1] - 3, now[:, 2:3] / 24, now[:, 3:])
            merchant = self.merchants(now[:, 1].long())
            return self.head(torch.cat((*numbers, merchant), dim=1))

    return Events()""",
    "kind": """\
    channels=("amount", MERCHANT, Time("hour"), Time("since")),  # a Time has no value in readings
    rate_hz=None,  # readings come at no fixed rate
    segment=Segment(samples=1, hop=1),  # each is an event
    classes=("sound", "fraud"),  # a label is an index into these, the rare class second
    metric="average_precision",
    retrain=0.065,  # a run starts above this Brier distance; the shares of the classes alone: 0.076
    outcomes=outcomes,
    training=Training(label_share=0.0),  # labels of the fleet come from `outcomes`""",
}
KINDS = {
    "classification": _sensor("int(level > 0)", 2, CLASSES),
    "regression": _sensor("level", 1, TARGETS),
    "events": EVENTS,
}


def _render(name: str, kind: Kind) -> str:
    """Return the file's text."""
    return TEMPLATE.format(name=name, file=f"{name.replace('-', '_')}.py", **KINDS[kind])
