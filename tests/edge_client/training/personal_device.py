"""A device with a model of its own, whose trainer's work is done here, without a child."""

from pathlib import Path

from torch import nn

from edge_client.inference.slots import Slots
from edge_client.samples.samples import Samples
from edge_client.training import trainer_process
from edge_client.training.personalization import Personalization
from streams.contract.task import Task
from streams.contract.work import TrainerJob, WorkReply, WorkRequest
from streams.runtime.key_files import create_key
from tests.rig.made_up.models import artifact, plain


class PersonalDevice:
    """It serves a version and has samples; `now` is its clock, `requests` what it asked for."""

    def __init__(self, folder: Path, task: Task) -> None:
        self.folder, self.task, self.now = folder, task, 1000.0
        self.key = create_key(folder / "keys" / "signing.pem")
        self.requests: list[WorkRequest] = []
        self.slots = Slots(folder / "slots", task, [self.key.public_key()])
        self.slots.open()
        self.samples = Samples(task, folder / "samples.rows")
        self.personal = Personalization(
            task, "d0", folder, self.slots, self.samples, self._work, clock=lambda: self.now
        )

    def _work(self, request: WorkRequest, weights: bytes) -> tuple[WorkReply, bytes]:
        self.requests.append(request)
        rows = self.folder / "rows.rows"
        with rows.open("wb") as file:
            if request.op == "normalize":
                self.samples.write_latest_rows(file)
            else:
                self.samples.write_training_rows(file)
        job = TrainerJob(
            device="d0", request=request, samples=str(rows), stop=str(self.folder / "trainer.stop")
        )
        return trainer_process.work(self.task, job, weights)

    def serve(self, number: int, model: nn.Module | None = None) -> None:
        self.slots.install(artifact(self.key, model or plain(number), number))

    def consider(self) -> None:
        """One look, and the training that it began."""
        self.personal.consider()
        if self.personal._training is not None:
            self.personal._training.join(60)
            assert not self.personal._training.is_alive()
        self.personal.consider()

    @property
    def answering(self) -> str:
        assert self.slots.engine is not None
        return self.personal.engine_for(self.slots.engine).model
