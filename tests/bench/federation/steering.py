"""What the devices of a fleet remember of its rounds with the strategy `scaffold`."""

from collections.abc import Mapping, Sequence

import numpy as np

from edge_client.training import scaffold
from edge_client.training.scaffold import Remembered

Tensors = dict[str, np.ndarray]


class Steering:
    """The product's corrections, kept in memory; names: of the parameters that learn."""

    def __init__(self, names: Sequence[str], learning_rate: float) -> None:
        self._names, self._rate = names, learning_rate
        self._before: dict[str, Remembered] = {}
        self._used: dict[str, Tensors] = {}

    def correction(self, device: str, number: int, sent: Mapping[str, np.ndarray]) -> Tensors:
        """Return what the device adds to its gradients in a round, by parameter."""
        mine = self._of(sent)
        found = scaffold.correction(self._before.get(device), "", number, mine)
        self._used[device] = found or {n: np.zeros_like(value) for n, value in mine.items()}
        return self._used[device]

    def learned(
        self,
        device: str,
        number: int,
        sent: Mapping[str, np.ndarray],
        trained: Mapping[str, np.ndarray],
        steps: int,
    ) -> None:
        """Remember what came of a round."""
        self._before[device] = Remembered(
            "", number, scaffold.digest(self._of(sent)), scaffold.reach(steps, self._rate),
            self._used[device], {n: value.copy() for n, value in self._of(trained).items()},
        )  # fmt: skip

    def _of(self, tensors: Mapping[str, np.ndarray]) -> Tensors:
        return {name: tensors[name] for name in self._names}
