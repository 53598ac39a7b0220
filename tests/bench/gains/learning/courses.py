"""Ways for a fleet to learn in rounds: FedAvg as the product has it, and others that change one
thing each. All train by the product's loop; the round is the product's intake and aggregation."""

from collections.abc import Iterator

from torch import nn

from federation.admission.update import Update
from federation.aggregation import strategies
from streams.contract.task import is_under
from streams.contract.weights import payload
from streams.learning import learning
from tests.bench.federation.loop import Tally, round_seed, rounds
from tests.bench.federation.steering import Steering
from tests.bench.federation.trainees import BASE, Tensors
from tests.bench.gains.learning.grounds import Ground
from tests.bench.gains.learning.losses import LossOf, Shifted, distilled, log_shares

LEAST_GAIN = 0.01  # of a device whose training shows no gain


class Course:
    """FedAvg as it is; what a subclass changes is a method or an attribute."""

    name = "FedAvg, as it is"
    proximal = 0.0
    shared: tuple[str, ...] = ()

    def __init__(self, ground: Ground) -> None:
        self.ground, self.tally = ground, Tally()
        self._local: dict[str, Tensors] = {}

    def rounds(self, seed: int, count: int) -> Iterator[Tensors]:
        """Yield the shared weights after each round."""
        task = self.ground.task
        aggregator = strategies.make("fedavg", task.training.aggregation, self.shared)
        for weights in rounds(
            task, list(self.ground.rows), self.ground.first, count, aggregator,
            lambda name, sent, number: self._train(name, sent, round_seed(seed, number)),
            self.tally,
        ):  # fmt: skip
            self.end_round()
            yield weights

    def of(self, name: str, weights: Tensors) -> Tensors:
        """Return a device's model: shared weights and its local layers."""
        return weights | self._local.get(name, {})

    def loss(self, name: str, model: nn.Module) -> LossOf:
        rows = self.ground.rows[name]
        return learning.segment_loss(self.ground.task, model, rows.x, rows.y, rows.weight)

    def correction(self, name: str, sent: Tensors) -> Tensors:
        """Return what is added to a device's gradients, by parameter."""
        return {}

    def learned(self, name: str, sent: Tensors, trained: Tensors, steps: int) -> None:
        """Look at what a device has trained."""

    def end_round(self) -> None:
        """Look at a round that has ended."""

    def samples(self, name: str, sent: Tensors, trained: Tensors) -> int:
        """Return what a device's update weighs."""
        return len(self.ground.rows[name])

    def _train(self, name: str, sent: Tensors, seed: int) -> Update:
        task = self.ground.task
        t, start = task.training, self.of(name, sent)
        model = learning.load_state(task.build_model(), start)
        fitted = learning.fit(
            model, len(self.ground.rows[name]), self.loss(name, model), epochs=t.epochs,
            batch_size=t.batch_size, learning_rate=t.learning_rate, seed=seed,
            optimizer=t.optimizer, proximal=self.proximal, correction=self.correction(name, sent),
        )  # fmt: skip
        trained = {n: tensor.numpy().copy() for n, tensor in model.state_dict().items()}
        self.learned(name, sent, trained, fitted.steps)
        weight = self.samples(name, sent, trained)
        local = [n for n in trained if not is_under(n, self.shared)]
        self._local[name] = {n: trained[n] for n in local}
        trained |= {n: sent[n] for n in local}
        block = payload.encode_update(trained, sent, t.payload)
        update = payload.restore_update(payload.unpack(block), sent)
        return Update(name, task.name, task.version, BASE, weight, update)


class FedProx(Course):
    """Li et al. 2020, arXiv 1812.06127; `Training.proximal` of the product."""

    name, proximal = "FedProx, 0.1", 0.1


class FedBN(Course):
    """Li et al. 2021, arXiv 2102.07623: batch norm stays on the device, which `Training.shared` of
    the product does."""

    name = "FedBN"

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self.shared = without_batch_norm(ground.task.build_model())


def without_batch_norm(model: nn.Module) -> tuple[str, ...]:
    """Return the modules with parameters that are no batch norm; () if there is none to leave
    out."""
    inner = {n: m for n, m in model.named_modules() if n and list(m.parameters(recurse=False))}
    found = tuple(n for n, m in inner.items() if not isinstance(m, nn.BatchNorm1d))
    return found if len(found) < len(inner) else ()


class Scaffold(Course):
    """Karimireddy et al. 2020, arXiv 1910.06378, as the strategy `scaffold` of the product has
    it."""

    name = "SCAFFOLD"

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        names = [n for n, _ in ground.task.build_model().named_parameters()]
        self._steering = Steering(names, ground.task.training.learning_rate)
        self._number = 1

    def correction(self, name: str, sent: Tensors) -> Tensors:
        return self._steering.correction(name, self._number, sent)

    def learned(self, name: str, sent: Tensors, trained: Tensors, steps: int) -> None:
        self._steering.learned(name, self._number, sent, trained, steps)

    def end_round(self) -> None:
        self._number += 1


class LogitAdjusted(Course):
    """Menon et al. 2021, arXiv 2007.07314, by each device's own class counts, as FedLC (Zhang et
    al. 2022, arXiv 2209.00189) does it with a margin: a class that a device has no label of is not
    pushed down."""

    name = "logit-adjusted loss"

    def loss(self, name: str, model: nn.Module) -> LossOf:
        rows = self.ground.rows[name]
        shift = log_shares(rows.y, len(self.ground.task.classes))
        return learning.segment_loss(self.ground.task, Shifted(model, shift), rows.x, rows.y)


class Equal(Course):
    """Every device's update weighs the same."""

    name = "equal weights"

    def samples(self, name: str, sent: Tensors, trained: Tensors) -> int:
        return 1


class ByGain(Course):
    """An update weighs by how much of the loss it takes off on what its device holds out."""

    name = "weights by held-out gain"

    def samples(self, name: str, sent: Tensors, trained: Tensors) -> int:
        before, after = self.ground.loss(sent, name), self.ground.loss(trained, name)
        won = 1 - after / before if before else 0.0
        return round(1000 * max(won, LEAST_GAIN))


class HardLabels(Course):
    """FedAvg where the teacher's labels are on the other rows."""

    name = "the teacher's labels"


class Distilled(HardLabels):
    """Where a row's label is the teacher's, its soft outputs (Hinton et al. 2015, arXiv
    1503.02531)."""

    name = "the teacher's soft outputs"

    def loss(self, name: str, model: nn.Module) -> LossOf:
        return distilled(self.ground.task, model, self.ground.rows[name])
