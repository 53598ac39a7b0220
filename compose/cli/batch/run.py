"""`tidewheel jobs run`: the runner of a state folder's queue."""

import os
import sys
import time
from typing import Annotated

import typer
from pydantic_core import to_json

from compose.cli.arguments import DEFAULT_STATE, AsJson, MetricsHost, MetricsPort, State
from compose.cli.batch.running import EXIT_CODES
from compose.reports.terminal import moment, say
from streams.contract.errors import UsageError
from streams.runtime.failpoints import read_failpoint
from streams.runtime.health import HOST, serve
from streams.runtime.interrupts import Interrupts


def run(
    state: State = DEFAULT_STATE,
    max_running: Annotated[
        int, typer.Option(min=1, max=64, help="Jobs that this runner runs at once.")
    ] = 1,
    max_attempts: Annotated[
        int, typer.Option(min=1, help="Attempts at a job that fails of what may pass.")
    ] = 5,
    once: Annotated[
        bool, typer.Option("--once", help="Run what is due, and end; for cron.")
    ] = False,
    until_empty: Annotated[
        bool, typer.Option("--until-empty", help="End when no job waits or runs.")
    ] = False,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = HOST,
    json: AsJson = False,
) -> None:
    """Run queued jobs and schedules, as a service: the oldest first.

    Several runners share a queue. SIGTERM and Ctrl-C end the jobs after their current shards, and
    they wait again; a second signal ends them at once. With --once or --until-empty it exits 1 if a
    job failed, and 3 if one is partial.
    """
    from compose.cli.batch.attempt import start
    from streams.batch.queue.job_queue import JobQueue
    from streams.batch.queue.runner import Event, Runner
    from streams.batch.queue.schedules import Schedules

    if once and until_empty:
        raise UsageError("--once and --until-empty: choose one")

    def tell(event: Event) -> None:
        if metrics is not None:
            metrics.told(event)
        if json:
            sys.stdout.write(to_json(event._asdict()).decode() + "\n")
            sys.stdout.flush()
            return
        about = f"{event.job}: " if event.job else ""
        say(f"{moment(queue.now())}  {about}{event.text}")

    reached, queue = read_failpoint(os.environ), JobQueue(state)
    schedules = Schedules(queue, reached)
    metrics = None
    if metrics_port is not None:
        from compose.cli.batch.queue_metrics import QueueMetrics

        metrics = QueueMetrics(queue, lambda: sum(bool(one.problem) for one in schedules.all()))
        server = serve(metrics, metrics_port, metrics_host)
        typer.echo(f"metrics on {metrics_host}:{server.port}", err=True)

    def fire() -> None:
        if metrics is not None:
            metrics.looked()
        for line in schedules.fire():
            tell(Event("schedule", line))

    with Interrupts() as interrupts:
        interrupts.patient = True

        def wait(seconds: float) -> bool:
            if interrupts.stop.is_set():
                time.sleep(seconds)
                return True
            return interrupts.stop.wait(seconds)

        runner = Runner(
            queue,
            lambda entry, lock: start(state, entry.id, lock),
            tell,
            wait,
            fire,
            hurry=lambda: interrupts.seen > 1,
            max_running=max_running,
            max_attempts=max_attempts,
            reached=reached,
        )
        over = runner.run("nothing due" if once else "empty" if until_empty else "stopped")
    codes = {EXIT_CODES.get(found.state, 0) for found in over} if once or until_empty else {0}
    code = next((code for code in (1, 3) if code in codes), 0)
    if code:
        raise typer.Exit(code)
