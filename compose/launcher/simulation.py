"""`tidewheel simulate`: a federated run with many simulated devices on one machine.

    1 hold the state folder; make the first model
    2 start a SuperLink for simulations and its SuperExec, and submit the run
    3 tell of the rounds as the run's journal does, until the run has ended
    4 take them down, the engine too where the run has not ended

The ServerApp and the training are those of a real run; Flower's engine, Ray, stands in for
SuperNodes, and `edge_client.simulation_app` for devices. There is no Kafka: the model is
not announced. After SIGKILL the engine continues until its run ends.
"""

import importlib.util
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from compose.launcher import broker, flower_processes
from compose.launcher.preparation import look, make_models
from compose.launcher.state_dir import StateDir
from compose.launcher.supervisor import Supervisor
from compose.reports.rounds import RunSummary, from_journals, history
from federation.controller.flwr_cli import COMPLETED, ConfigValue, Submission
from streams.contract.errors import ProcessFailed, UsageError
from streams.contract.task import absolute_reference, load_task
from streams.fleet.wording import round_line
from streams.runtime.disk import write_atomic

READY_S = 30.0
POLL_S = 0.5
ROUND_DEADLINE_S = 3600.0  # devices share the processors: none is late

Say = Callable[[str], None]


@dataclass(frozen=True)
class Simulation:
    """What is asked for; `config` are settings of the run that differ from the task's."""

    task_ref: str
    devices: int
    state: Path
    config: dict[str, ConfigValue]


def simulate(asked: Simulation, say: Say) -> RunSummary:
    """The run, once it has ended; ProcessFailed says why it did not come to its end."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError("a simulation needs Ray: pip install 'tidewheel[simulation]'")
    reference = absolute_reference(asked.task_ref)
    task, layout = load_task(reference), StateDir(asked.state)
    look(task, say)
    with layout.lock():
        make_models(reference, task, layout, say)
        supervisor = Supervisor(layout.logs)
        try:
            submission = _started(supervisor, asked, reference)
            run = submission.start(asked.config, layout.state / "flower")
            _follow(submission, layout.state, run, say)
        finally:
            supervisor.stop("superexec", "superlink")  # the engine is in the first one's group
    (found,) = history(from_journals(layout.state / "runs", run))
    return found


def _started(supervisor: Supervisor, asked: Simulation, reference: str) -> Submission:
    """A SuperLink that answers, and how to submit to it."""
    state = asked.state.resolve()
    (port,) = broker.free_ports(1)
    superlink, superexec = flower_processes.simulation(state, port)
    supervisor.start("superlink", superlink)
    deadline = time.monotonic() + READY_S
    while not flower_processes.is_ready(f"{flower_processes.HOST}:{port}"):
        supervisor.check()
        if time.monotonic() > deadline:
            said = supervisor.last_words("superlink")
            raise ProcessFailed(f"the SuperLink does not answer: {said}")
        time.sleep(POLL_S)
    supervisor.start("superexec", superexec)
    config: dict[str, ConfigValue] = {
        "task": reference,
        "state": str(state),
        "kafka": "none",
        "minimum-nodes": asked.devices,
        "node-wait-s": 10.0,
        "round-deadline-s": ROUND_DEADLINE_S,
    }
    engine = f"num-supernodes={asked.devices} client-resources-num-cpus=1"
    engine += f" init-args-num-cpus={os.cpu_count() or 1}"
    address = f"{flower_processes.HOST}:{port}"
    return flower_processes.submission(
        state, address, config, clientapp=flower_processes.SIMULATED, federation=engine
    )


def _follow(submission: Submission, state: Path, run: str, say: Say) -> None:
    """Tell of the run's events until it has ended; its log is kept beside the others."""
    told = 0
    while True:
        status = submission.status(run)
        events = from_journals(state / "runs", run)
        for event in events[told:]:
            if (line := round_line(event)) is not None:
                say(line)
        told = len(events)
        if status.startswith("finished"):
            break
        time.sleep(POLL_S)
    path, text = state / "logs" / "simulation.log", submission.flwr.log(run)
    write_atomic(path, text.encode())
    if status != COMPLETED:
        raise ProcessFailed(f"the run {status}: {_cause(text)} (see {path})")


def _cause(log: str) -> str:
    """The first exception in a log: later ones are raised from it."""
    found = re.findall(
        r"^(?:\w+\.)*\w*(?:Error|Exception|Unavailable|Failed): .*", log, re.MULTILINE
    )
    return found[0][:300] if found else "its log does not tell why"
