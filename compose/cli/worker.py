"""`tidewheel worker`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from compose.cli.arguments import (
    DEFAULT_STATE,
    Kafka,
    State,
    StorePlace,
    TaskArgument,
    Trust,
    configure_log,
    options_of,
    store_of,
    taking,
    trusted_keys,
)
from compose.launcher.state_dir import StateDir
from streams.kafka.settings import BrokerSettings
from streams.worker.settings import WorkerSettings, hold


def run_worker(
    options: dict[str, Any],
    task: TaskArgument,
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    instance: Annotated[
        str | None,
        typer.Option(
            help="This worker's stable name within its group; default: the host's name and the "
            "first free number."
        ),
    ] = None,
    store: StorePlace = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="The artifact of a fixed teacher; default: the one that the controller offers "
            "on Kafka, and <state>/registry/teacher.twa until then."
        ),
    ] = None,
    trust: Trust = None,
    device: Annotated[
        str,
        typer.Option(
            metavar="auto|cpu|cuda",
            envvar="TIDEWHEEL_TEACHER_DEVICE",
            help="Where the teacher runs; auto: on CUDA where there is one.",
        ),
    ] = "cpu",
) -> None:
    """Run a scoring worker: close event-time windows and score them with the teacher.

    Workers of one task share its partitions; each has a unique --instance. SIGTERM or Ctrl-C
    stops it between two commits.
    """
    from streams.worker.app import run
    from streams.worker.settings import torch_device
    from streams.worker.store.tables import beside

    layout = StateDir(state)
    configure_log()
    processor = torch_device(device, "--device")
    place = store_of(state, store)
    workers = beside(place, state)
    name, _held = hold(workers, instance)
    run(
        WorkerSettings(
            task=task,
            broker=BrokerSettings.at(kafka),
            store=place,
            workers=workers,
            trusted=trusted_keys(layout, trust),
            teacher=teacher,
            fallback=layout.registry / "teacher.twa",
            instance=name,
            device=processor,
            **options,
        )
    )


worker = taking(run_worker, options_of(WorkerSettings), dict)
