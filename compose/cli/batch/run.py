"""`tidewheel jobs run`: the runner of a state folder's queue."""

import os
import sys
import time
from typing import Annotated

import typer
from pydantic_core import to_json

from compose.cli.arguments import DEFAULT_STATE, AsJson, MetricsHost, MetricsPort, State
from compose.cli.batch.running import EXIT_CODES, seconds_of
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
    retry_after: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="The pause before the second attempt; each later one is doubled."
        ),
    ] = "30s",
    lease: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="After so long without a sign of life a job's process is killed, and the job is "
            "run again.",
        ),
    ] = "30s",
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
    """Run queued jobs and schedules, as a service: the highest priority first, then the oldest.

    Several runners share a queue. SIGTERM and Ctrl-C end the jobs after their current shards, and
    they wait again; a second signal ends them at once. With --once or --until-empty it exits 1 if a
    job failed, and 3 if one is partial.
    """
    from compose.cli.batch.attempt import command
    from streams.batch.queue.job_queue import JobQueue
    from streams.batch.queue.outcome import Retrying
    from streams.batch.queue.runner import Event, Runner
    from streams.batch.schedule.schedules import Schedules

    lease_s, pause_s = seconds_of(lease, "--lease"), seconds_of(retry_after, "--retry-after")
    assert lease_s is not None
    assert pause_s is not None
    if once and until_empty:
        raise UsageError("--once and --until-empty: choose one")

    def tell(event: Event) -> None:
        if metrics is not None:
            metrics.told(event)
        if json:
            sys.stdout.write(to_json(event).decode() + "\n")
            sys.stdout.flush()
            return
        about = f"{event.job}: " if event.job else ""
        say(f"{moment(JobQueue(state).now())}  {about}{event.text}")

    reached = read_failpoint(os.environ)
    schedules = Schedules(state, reached=reached)
    metrics = None
    if metrics_port is not None:
        from streams.batch.queue.metrics import QueueMetrics

        metrics = QueueMetrics(
            JobQueue(state), lambda: sum(bool(found.problem) for found in schedules.all())
        )
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
            JobQueue(state),
            lambda entry: command(state, entry.id, entry.fence, lease_s, max_attempts, pause_s),
            tell,
            wait,
            hurry=lambda: interrupts.seen > 1,
            max_running=max_running,
            lease_s=lease_s,
            fire=fire,
            retrying=Retrying(max_attempts, pause_s),
            reached=reached,
        )
        over = runner.run("nothing due" if once else "empty" if until_empty else "stopped")
    codes = {EXIT_CODES.get(result.state, 0) for result in over} if once or until_empty else {0}
    code = next((code for code in (1, 3) if code in codes), 0)
    if code:
        raise typer.Exit(code)
