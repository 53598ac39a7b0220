"""Runs in an MLflow tracking server (`tidewheel controller --mlflow URI`).

    experiment   `tidewheel/<task>.v<version>`
    run          each federated run: its rounds' metrics by step, how many updates were admitted,
                 refused or failed; at its end the state, and why a candidate was refused
    tags         tidewheel.run, and of the promoted version tidewheel.model, tidewheel.base with
                 tidewheel.base_run (the MLflow run that made it), tidewheel.release (the last
                 decision about it: stage, served, rolled-back) and its reason

The leading controller writes what it reads, on another thread: nothing waits for the server. While
it does not answer, at most WAITING steps wait and later ones are dropped. The log has one line when
that begins, and one with the number of dropped steps when it ends. A step that is written twice, as
after an answer that was lost, is the same point of a metric or the same tag. Credentials are
MLflow's: MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and _PASSWORD.
"""

import logging
import os
import re
import threading
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

from streams.contract.decisions import Decision
from streams.contract.documents import RoundEvent
from streams.contract.errors import UsageError
from streams.contract.task import Task

WAITING = 10_000  # steps
RETRY_S, STOP_S = 30.0, 5.0
OF_UPDATES = ("admitted", "refused", "failed")
SETTINGS = {  # of MLflow, where the environment has none
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true", "MLFLOW_ALLOW_FILE_STORE": "true",
}  # fmt: skip
NOT_IN_NAMES = re.compile(r"[^\w\-./ ]")

log = logging.getLogger(__name__)


class Tracker(threading.Thread):
    """Writes steps of runs and decisions. Raises UsageError without the extra `mlflow`."""

    def __init__(self, uri: str, task: Task, retry_s: float = RETRY_S) -> None:
        super().__init__(name="mlflow", daemon=True)
        if "@" in uri.partition("://")[2].partition("/")[0]:
            raise UsageError("--mlflow names a password: set MLFLOW_TRACKING_TOKEN instead")
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        try:
            from mlflow import MlflowClient
        except ImportError as exc:
            raise UsageError(f"--mlflow needs tidewheel[mlflow]: {exc}") from exc
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # it says each try
        try:
            self._client: Any = MlflowClient(tracking_uri=uri)
        except Exception as exc:  # its own errors, of an address or a folder that cannot be used
            raise UsageError(f"--mlflow {uri}: {' '.join(str(exc).split())[:300]}") from exc
        self._uri, self._retry_s = uri, retry_s
        self._experiment_name, self._experiment = f"tidewheel/{task.id}", ""
        self._steps: deque[RoundEvent | Decision] = deque()
        self._dropped = 0
        self._news, self._ending = threading.Event(), threading.Event()
        self._updates: Counter[str] = Counter()  # of the present round
        self._known: dict[tuple[str, str], str] = {}  # runs by a tag

    def take(self, step: RoundEvent | Decision) -> None:
        """Have a step written, at once or when the server answers again."""
        if len(self._steps) < WAITING:
            self._steps.append(step)
        else:
            self._dropped += 1
        self._news.set()

    @property
    def waiting(self) -> int:
        """How many steps are not written yet."""
        return len(self._steps)

    def stop(self) -> None:
        """Write what waits, for STOP_S at most."""
        self._ending.set()
        self._news.set()
        if self.is_alive():
            self.join(STOP_S)
        if lost := len(self._steps) + self._dropped:
            log.warning("MLflow at %s: %d steps were not written", self._uri, lost)

    def run(self) -> None:
        failing = False
        while self._steps or not self._ending.is_set():
            self._news.wait()
            self._news.clear()
            try:
                while self._steps:
                    self._write(self._steps[0])
                    self._steps.popleft()
                    if failing:
                        log.info("MLflow at %s answers again", self._uri)
                    if self._dropped:
                        text = "MLflow at %s: %d steps were dropped while it did not answer"
                        log.warning(text, self._uri, self._dropped)
                        self._dropped = 0
                    failing = False
            except Exception as exc:  # a library over a network: whatever it raises, runs continue
                if not failing:
                    why = " ".join(str(exc).split())[:200]
                    log.warning("MLflow at %s does not take runs: %s; trying again", self._uri, why)
                failing = True
                if self._ending.wait(self._retry_s):
                    return
                self._news.set()

    def _write(self, step: RoundEvent | Decision) -> None:
        if isinstance(step, Decision):
            if step.model and (made := self._find("model", step.model)):
                self._log(made, {"release": step.kind, "release_reason": step.reason}, {}, step)
            return
        if step.kind in OF_UPDATES:
            self._updates[step.kind] += 1
        if step.kind in (*OF_UPDATES, "asked", "requested", "invited") or not step.run:
            return
        run, tags, figures = self._run_of(step), dict[str, str](), dict(step.metrics)
        if step.kind == "aggregated":
            figures |= {name: float(self._updates.pop(name, 0)) for name in OF_UPDATES}
        if step.kind in ("promoted", "rejected"):
            tags = {"outcome": step.kind, "reason": step.reason, "metric": step.metric}
        if step.kind == "promoted" and step.model:
            base = self._find("model", step.base) or ""
            tags |= {"model": step.model, "base": step.base, "base_run": base}
            self._known["model", step.model] = run
        self._log(run, tags, figures, step)
        if step.kind == "finished":
            status = "FAILED" if step.reason else "FINISHED"
            self._client.set_terminated(run, status, step.time_us // 1000)

    def _log(
        self,
        run: str,
        tags: Mapping[str, str],
        figures: Mapping[str, float],
        step: RoundEvent | Decision,
    ) -> None:
        from mlflow.entities import Metric, RunTag

        at_ms, number = step.time_us // 1000, getattr(step, "round", 0)
        points = [
            Metric(NOT_IN_NAMES.sub("_", name), value, at_ms, number)
            for name, value in figures.items()
        ]
        named = [RunTag(f"tidewheel.{name}", value[:5000]) for name, value in tags.items() if value]
        if points or named:
            self._client.log_batch(run, points, tags=named)

    def _run_of(self, step: RoundEvent) -> str:
        """Return the MLflow run of a federated one; make it if it is new."""
        if found := self._find("run", step.run):
            return found
        tags = {"mlflow.runName": f"run {step.run}", "tidewheel.run": step.run}
        if step.resumed_from:
            tags["tidewheel.resumed_from"] = step.resumed_from
        made = self._client.create_run(self._experiment, step.time_us // 1000, tags)
        self._known["run", step.run] = str(made.info.run_id)
        return str(made.info.run_id)

    def _find(self, name: str, text: str) -> str | None:
        """Return the run whose tag `tidewheel.<name>` is `text`."""
        if not self._experiment:
            known = self._client.get_experiment_by_name(self._experiment_name)
            made = self._client.create_experiment
            self._experiment = known.experiment_id if known else made(self._experiment_name)
        if (name, text) not in self._known:
            quoted = text.replace("'", "")
            wanted = f"tags.`tidewheel.{name}` = '{quoted}'"
            found = self._client.search_runs([self._experiment], wanted, max_results=1)
            if not found:
                return None
            self._known[name, text] = found[0].info.run_id
        return self._known[name, text]
