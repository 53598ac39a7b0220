"""What a run offers its fleet of what it learned: the product's step and gate, with the reports of
honest devices and of hostile ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edge_client.samples.splits import HELD_OUT
from edge_client.training import trainer_process
from federation.bootstrap.onnx_export import export_graph
from federation.evaluation import device_metrics
from federation.evaluation.accuracy import DEVICE_CAP, HeldOut
from federation.evaluation.device_metrics import DeviceResult
from federation.evaluation.evidence import CandidateEvaluation, Results
from federation.evaluation.paired import Paired
from federation.evaluation.promotion_gate import Verdict
from streams.contract.artifact import GRAPH, Artifact, Manifest
from streams.contract.task import Task
from streams.contract.weights import payload
from streams.contract.work import PART
from streams.learning import learning
from streams.learning.interpolation import interpolated
from tests.bench.federation.people import Person
from tests.bench.federation.study import Study
from tests.bench.federation.trainees import Tensors

# What a hostile device reports in favour of a candidate: more rows than count, all of them wrong by
# the served version and right by all that was learned, half of them by a part of the way.
PRAISE = {
    "": DeviceResult(Paired(DEVICE_CAP, 0, DEVICE_CAP, 0)),
    PART: DeviceResult(Paired(DEVICE_CAP, 0, DEVICE_CAP // 2, 0)),
}


@dataclass
class Gate:
    """The gate of a study's task; its graph is exported once."""

    study: Study
    _base: list[Artifact] = field(default_factory=list)

    def judge(
        self, first: Tensors, learned: Tensors, honest: Sequence[Person], hostile: Sequence[str]
    ) -> tuple[Verdict, Tensors]:
        """Return the verdict on what was learned, and the weights that it is about."""
        task = self.study.task
        people = self.study.held_out
        segments = np.concatenate([person.segments for person in people])
        labels = np.concatenate([person.labels for person in people])
        decides, audit = HeldOut(segments, labels).audited(task)
        evaluation = CandidateEvaluation(task, self._served(first), decides, audit=audit)
        between = interpolated(first, learned, task.training.interpolation)
        part = payload.round_candidate(between, first, task.training.payload)
        reports = {
            prefix: {
                **{person.name: compared(task, first, weights, person) for person in honest},
                **dict.fromkeys(hostile, PRAISE[prefix]),
            }
            for prefix, weights in (("", learned), (PART, part))
        }
        return evaluation.judge(first, learned, lambda prefix: known(reports[prefix]), task.margin)

    def _served(self, first: Tensors) -> Artifact:
        """The served version, of which an evaluation reads the graph alone."""
        task = self.study.task
        if not self._base:
            model = learning.load_state(task.build_model(), first).eval()
            about = Manifest(
                task=task.name, task_version=task.version, number=1, created_us=0, key="", files=[]
            )
            self._base.append(Artifact(about, "", {GRAPH: export_graph(task, model)}))
        return self._base[0]


def compared(task: Task, first: Tensors, weights: Tensors, person: Person) -> DeviceResult | None:
    """Return what an honest device reports, by the labels of all that it holds out."""
    rows = person.split == HELD_OUT
    models = [learning.load_state(task.build_model(), each) for each in (first, weights)]
    said = trainer_process.compare(
        task, models[0], models[1], person.segments[rows], person.labels[rows]
    )
    return device_metrics.read(task, said)


def known(reports: Mapping[str, DeviceResult | None]) -> Results:
    """Return the reports that are possible ones."""
    return {name: found for name, found in reports.items() if found is not None}
