"""`tidewheel edge`: one device, run and looked after on its own machine."""

from pathlib import Path
from typing import Annotated

import typer

from compose.arguments import (
    DEFAULT_STATE,
    Kafka,
    State,
    TaskArgument,
    Trust,
    broker_from,
    configure_log,
    device_name,
    served_model,
    trusted_keys,
)
from compose.layout import Layout

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command()
def run(
    task: TaskArgument,
    device: Annotated[str, typer.Option(help="The device's name.")],
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    model: Annotated[
        Path | None,
        typer.Option(help="An artifact for a device that has none; default: the registry's."),
    ] = None,
    trust: Trust = None,
    speed: Annotated[
        float, typer.Option(help="Replay speed: 1 is real time, 0 as fast as it goes.")
    ] = 1.0,
    passes: Annotated[
        int | None, typer.Option(min=1, help="Passes through the data; default: endless.")
    ] = None,
    drain: Annotated[
        float, typer.Option(help="Seconds to send what is pending at the end.")
    ] = 10.0,
) -> None:
    """Run one device: infer, keep events in the spool, forward them, follow releases.

    Works without a broker in reach. SIGTERM or Ctrl-C drains it.
    """
    from edge_client.agent import run as serve
    from edge_client.settings import EdgeSettings

    layout = Layout(state)
    configure_log()
    serve(
        EdgeSettings(
            task_ref=task,
            device=device_name(device),
            folder=layout.device(device),
            broker=broker_from(kafka),
            trusted=trusted_keys(layout, trust),
            model=model or served_model(layout),
            speed=speed,
            passes=passes,
            drain_s=drain,
        )
    )
