"""Aggregation of admitted updates: the interface, and the treatment of each kind of tensor.

learned       floats. The rule of a paper sees their differences from the weights that were sent,
              in double precision: next to the squares of complete float32 weights, Krum would lose
              small distances between updates.
statistics    running mean and variance of batch norm. Optimizers and distances ignore them; they
              take the mean weighted by samples, or with a robust rule the median, because one
              device could undo the rule through a mean.
late updates  are differences from the weights that were sent to them; with staleness s they are
              scaled by 1 / sqrt(1 + s) (Nguyen et al. 2022, arXiv 2106.06639, section 5).
embeddings    a row that no sample of a device used is the row that it received. With a weighted
              mean it does not count there: the mean of a row is that of the devices that used it.
integers      counters keep the value that was sent: they have no meaningful mean.
"""

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

import numpy as np

from federation.admission import Update, Weights
from streams.contract.errors import ProcessFailed, TidewheelError, line_of, own_line
from streams.contract.task.extensions import Move, Strategy
from streams.learning.updates import is_statistic

BLOCK = 1 << 16  # numbers of all devices: they fit into a cache
SAMPLES_CAP = 2048  # no device weighs more than this many samples

State = dict[str, np.ndarray]
T = TypeVar("T")

log = logging.getLogger(__name__)


class StatelessRule:
    """A rule without a state between rounds."""

    name = ""
    by_number = True
    is_mean = False

    def state(self) -> State:
        return {}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        if state:
            raise ValueError(f"{self.name} has no state, this is another strategy's: {min(state)}")


class Aggregator:
    """Computes the next weights: applies a rule, the arithmetic of one paper, to learned tensors,
    and the treatment above to the others. Of a rule `by_number` only BLOCK numbers of all devices
    are in memory in double precision: updates themselves are read from files.

    A round with fewer than `least` updates must keep its weights, because the rule's guarantee does
    not hold. `clip` is the largest norm of an update, 0 for no limit. `embeddings`: the weights of
    which a device uses a part of the rows. `state` is what the rule keeps between rounds, for a
    checkpoint. Raises ProcessFailed for a rule that raises, or returns what no model can be moved
    by: it would do so again.
    """

    clip = 0.0

    def __init__(self, rule: Strategy) -> None:
        self.name, self.least, self._rule = rule.name, rule.least, rule
        self.embeddings: Collection[str] = ()

    def aggregate(self, updates: Sequence[Update], base: Weights) -> dict[str, np.ndarray]:
        """Return the next weights with the keys, order, shapes and dtypes of `base`. The order of
        the updates does not matter."""
        if not updates:
            raise ValueError("nothing to aggregate: no update was admitted")
        updates = sorted(updates, key=lambda update: update.device)
        floats = [name for name in base if base[name].dtype.kind == "f"]
        statistics = [name for name in floats if is_statistic(name)]
        learned = [name for name in floats if not is_statistic(name)]
        found = dict(base)
        if self._rule.by_number:
            found |= {name: self._by_blocks(updates, base, name) for name in learned}
        elif learned:
            steps = self._steps("step", self._moves(updates, base, learned))
            found |= {name: self._moved(name, base[name], steps[name]) for name in learned}
        for name in set(self.embeddings).intersection(learned) if self._rule.is_mean else ():
            found[name] = self._by_rows(updates, base[name], found[name], name)
        for name in statistics:
            step = self._steps("statistics", self._moves(updates, base, [name]))
            found[name] = self._moved(name, base[name], step[name])
        return found

    def exhausted(self) -> str | None:
        """Return why there must be no further round; None if there may be."""
        return None

    def metrics(self) -> dict[str, float]:
        """Return metrics of the last round."""
        return {}

    def state(self) -> State:
        found = self._ask("state", self._rule.state)
        if not isinstance(found, Mapping):
            raise self._wrong("state", f"{type(found).__name__} in place of a dict")
        if not all(isinstance(each, np.ndarray) for each in found.values()):
            raise self._wrong("state", "a value that is not an array")
        return found

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        self._ask("load", lambda: self._rule.load(state))

    def _ask(self, method: str, call: Callable[[], T]) -> T:
        """Call the rule, which may be of a package; name it, and the line, in what it raises."""
        try:
            return call()
        except (TidewheelError, MemoryError):
            raise
        except Exception as exc:
            log.exception("strategy %s: %s failed", self.name, method)
            what = f"{type(exc).__name__}: {line_of(exc)}{own_line(exc)}"
            raise ProcessFailed(f"strategy {self.name}: {method}: {what}") from exc

    def _wrong(self, method: str, what: str) -> ProcessFailed:
        return ProcessFailed(f"strategy {self.name}: {method} returns {what}")

    def _steps(self, method: str, moves: list[Move]) -> dict[str, np.ndarray]:
        """Return by how much the rule moves each tensor: an array of its shape."""
        rule = self._rule.step if method == "step" else self._rule.statistics
        found, steps = self._ask(method, lambda: rule(moves)), {}
        for name, like in moves[0].tensors.items():
            if not isinstance(found, Mapping) or name not in found:
                raise self._wrong(method, f"nothing for {name}")
            try:
                steps[name] = np.asarray(found[name], np.float64)
            except Exception as exc:  # what another library's array raises
                raise self._wrong(method, f"no numbers for {name}: {line_of(exc)}") from exc
            if steps[name].shape != like.shape:
                shapes = f"{steps[name].shape} for {name}, which has {like.shape}"
                raise self._wrong(method, f"an array of shape {shapes}")
        return steps

    def _moved(self, name: str, before: np.ndarray, step: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            after = np.asarray((before.astype(np.float64) + step).astype(before.dtype))
        if not np.isfinite(after).all():
            raise ProcessFailed(f"strategy {self.name} makes {name} infinite, or not a number")
        return after

    def _by_blocks(self, updates: Sequence[Update], base: Weights, name: str) -> np.ndarray:
        after, size = np.empty_like(base[name]).reshape(-1), max(1, BLOCK // len(updates))
        for at in range(0, after.size, size):
            part = slice(at, at + size)
            step = self._steps("step", self._moves(updates, base, [name], part))[name]
            after[part] = self._moved(name, base[name].reshape(-1)[part], step)
        return after.reshape(base[name].shape)

    def _by_rows(
        self, updates: Sequence[Update], base: np.ndarray, mean: np.ndarray, name: str
    ) -> np.ndarray:
        """Return the mean of an embedding over the devices that used each row."""
        total, used = 0.0, np.zeros(len(base))
        for update in updates:
            before = update.sent[name] if update.sent is not None else base
            samples = min(update.samples, SAMPLES_CAP)
            total += samples
            used += samples * (update.weights[name] != before).any(axis=1)
        scale = np.divide(total, used, out=np.zeros_like(used), where=used > 0)
        return self._moved(name, base, scale[:, None] * (mean.astype(np.float64) - base))

    def _moves(
        self,
        updates: Sequence[Update],
        base: Weights,
        names: Sequence[str],
        part: slice | None = None,
    ) -> list[Move]:
        """Return the devices' differences from the weights that they started from, of a part of
        the flat tensors if one is given."""
        found = []
        for update in updates:
            before = update.sent if update.sent is not None else base
            scale, tensors = 1 / math.sqrt(1 + update.staleness), {}
            for name in names:
                new, old = update.weights[name], before[name]
                if part is not None:
                    new, old = new.reshape(-1)[part], old.reshape(-1)[part]
                tensors[name] = np.asarray(scale * (new - old.astype(np.float64)))
            found.append(Move(tensors, min(update.samples, SAMPLES_CAP)))
        return found
