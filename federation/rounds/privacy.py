"""Central differential privacy per device (McMahan et al. 2018, arXiv 1710.06963).

Each device clips its update to the norm `clip` before it sends it; larger updates are refused. The
step is the plain mean of the n admitted updates, whatever their samples, plus normal noise of
standard deviation noise_multiplier * clip / n on each weight. Batch norm statistics and integers
keep the value that was sent.

The privacy cost is that of the aggregate: of one Gaussian mechanism per round, for two fleets of
which one has a device's update replaced by zero; the sampling of devices is not counted in its
favour. What else a run reads of devices is outside of it: held-out counts, the choice between the
learned weights and a part of the way to them, and the gate. The
accountant is opacus' (Renyi differential privacy, Mironov 2017, arXiv 1702.07476).

    <state>/privacy.json   noise multipliers and the number of rounds averaged with each, over all
                           runs of the task. Written before a round's average is used: a crash
                           between the two counts a round that nobody saw.

The noise is derived from a secret of the run and the updates: a resumed run gets the same noise for
the same updates and weights, and other noise for other updates. The secret is in the run's
checkpoints (0600) and never leaves the server.
"""

import secrets
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from federation.admission import Update, Weights, digest
from federation.rounds.aggregator import Aggregator, State
from federation.rounds.strategies import weighted_mean
from streams.contract.documents import Document
from streams.contract.errors import MalformedRecord, UsageError
from streams.contract.task import Privacy
from streams.contract.task.extensions import Move
from streams.runtime.files import write_atomic

KEY_BYTES = 32
DELTA = 1e-5
ORDERS = [1 + x / 10 for x in range(1, 100)] + [*range(12, 64), 128, 256, 512]


class Spent(Document):
    """The file privacy.json; rounds: (noise multiplier, number of rounds)."""

    format: Literal[1] = 1
    rounds: list[tuple[float, int]] = []


class Ledger:
    """The privacy spent by all runs of the task."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def spent(self) -> dict[float, int]:
        """Return rounds by noise multiplier; raise UsageError if the file is unreadable, as
        starting again at zero would be wrong."""
        try:
            return dict(Spent.decode(self._path.read_bytes()).rounds)
        except FileNotFoundError:
            return {}
        except MalformedRecord as exc:
            raise UsageError(f"{self._path} cannot be read, restore a backup: {exc}") from exc

    def add(self, noise_multiplier: float) -> None:
        found = self.spent()
        found[noise_multiplier] = found.get(noise_multiplier, 0) + 1
        write_atomic(self._path, Spent(rounds=sorted(found.items())).encode())


def epsilon(spent: Mapping[float, int], delta: float) -> float:
    """Return the epsilon of the aggregates of these numbers of rounds by noise multiplier; 0 for
    none."""
    if not any(spent.values()):
        return 0.0
    try:
        from opacus.accountants.analysis import rdp
    except ImportError as exc:
        raise UsageError(
            f"privacy needs an accountant: pip install 'tidewheel[dp]' ({exc})"
        ) from exc
    total = sum(
        np.asarray(rdp.compute_rdp(q=1.0, noise_multiplier=z, steps=steps, orders=ORDERS))
        for z, steps in spent.items()
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # with very little noise the bound holds but is not tight
        found, _ = rdp.get_privacy_spent(orders=ORDERS, rdp=total, delta=delta)
    return float(found)


class NoisyMean:
    """The rule: the mean with noise; `name` is that of the strategy."""

    least = 1
    by_number = False  # one vector of noise
    is_mean = False

    def __init__(self, name: str, privacy: Privacy) -> None:
        self.name, self._privacy = name, privacy
        self._key = secrets.token_bytes(KEY_BYTES)
        self.noise = 0.0  # standard deviation of the last step

    def step(self, moves: Sequence[Move]) -> dict[str, np.ndarray]:
        mean = weighted_mean([move._replace(samples=1) for move in moves])
        self.noise = self._privacy.noise_multiplier * self._privacy.clip / len(moves)
        updates = "".join(digest(move.tensors) for move in moves)
        dice = np.random.default_rng([*self._key, *bytes.fromhex(updates)])
        return {n: mean[n] + self.noise * dice.standard_normal(mean[n].shape) for n in sorted(mean)}

    def statistics(self, moves: Sequence[Move]) -> dict[str, np.ndarray]:
        return {name: np.zeros_like(value) for name, value in moves[0].tensors.items()}

    def state(self) -> State:
        return {"private/key": np.frombuffer(self._key, np.uint8)}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        key = state.get("private/key")
        if set(state) != {"private/key"} or key is None or key.shape != (KEY_BYTES,):
            raise ValueError(f"this is not the state of a private {self.name}")
        self._key = key.astype(np.uint8).tobytes()


class Private(Aggregator):
    """An Aggregator that records the privacy it spends."""

    def __init__(self, rule: NoisyMean, privacy: Privacy, ledger: Ledger):
        super().__init__(rule)
        self.name = f"private {rule.name}"
        self.clip = privacy.clip
        self._mean, self._privacy, self._ledger = rule, privacy, ledger

    def aggregate(self, updates: Sequence[Update], base: Weights) -> dict[str, np.ndarray]:
        self._ledger.add(self._privacy.noise_multiplier)
        return super().aggregate(updates, base)

    def exhausted(self) -> str | None:
        limit, z = self._privacy.epsilon, self._privacy.noise_multiplier
        if limit is None:
            return None
        spent = self._ledger.spent()
        then = epsilon({**spent, z: spent.get(z, 0) + 1}, DELTA)
        if then <= limit:
            return None
        raised = f"another round would raise epsilon of the aggregate to {then:.2f}"
        return f"{raised}; {limit:.2f} is allowed"

    def metrics(self) -> dict[str, float]:
        spent = epsilon(self._ledger.spent(), DELTA)
        return {"epsilon": spent, "noise": self._mean.noise}


def private(strategy: str, privacy: Privacy, ledger: Ledger) -> Private:
    """Return a new aggregator for a task with `Training.privacy`; raise UsageError without an
    accountant."""
    epsilon({privacy.noise_multiplier: 1}, DELTA)
    return Private(NoisyMean(strategy, privacy), privacy, ledger)
