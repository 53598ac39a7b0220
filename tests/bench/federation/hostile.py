"""What a hostile device sends in place of its update; everything else is as an honest one's."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from federation.admission.admission import NORM_FACTOR, UNKNOWN_FACTOR
from federation.admission.update import Update
from streams.learning.clipping import is_statistic, update_norm
from tests.bench.federation.trainees import Tensors

# The update that the device would send, the weights that it was sent, the round, and the update
# that it made in the first round.
Attack = Callable[[Update, Tensors, int, Update], Update]


def not_a_number(update: Update, _sent: Tensors, _number: int, _first: Update) -> Update:
    """No number in any tensor of floats."""
    return _each_float(update, lambda _name, value: np.full_like(value, np.nan))


def hundredfold(update: Update, sent: Tensors, _number: int, _first: Update) -> Update:
    return _scaled(update, sent, 100.0)


def sign_flipped(update: Update, sent: Tensors, _number: int, _first: Update) -> Update:
    """As far as an honest update goes, the other way."""
    return _scaled(update, sent, -1.0)


def far_flipped(update: Update, sent: Tensors, _number: int, _first: Update) -> Update:
    """The other way, about as far as admission lets an update go once it knows the usual norm."""
    return _scaled(update, sent, -0.9 * NORM_FACTOR)


def beyond_the_model(update: Update, sent: Tensors, _number: int, _first: Update) -> Update:
    """The other way, about as far as admission lets an update go in a run's first round, when it
    knows no usual norm."""
    model = update_norm(sent, {name: np.zeros_like(value) for name, value in sent.items()})
    factor = 0.9 * UNKNOWN_FACTOR * model / max(update_norm(update.weights, sent), 1e-9)
    return _scaled(update, sent, -factor)


def odd_shaped(update: Update, _sent: Tensors, _number: int, _first: Update) -> Update:
    """One row more in each tensor of floats."""
    return _each_float(update, lambda _name, value: np.concatenate([value, value[:1]]))


def replayed(_update: Update, _sent: Tensors, _number: int, first: Update) -> Update:
    """The update of the first round, in every round."""
    return first


def none(update: Update, _sent: Tensors, _number: int, _first: Update) -> Update:
    """The update as it is: of labels that were flipped before the device learned from them."""
    return update


ATTACKS: Mapping[str, Attack] = {
    "NaN": not_a_number,
    "100-fold": hundredfold,
    "odd shapes": odd_shaped,
    "replayed": replayed,
    "labels flipped": none,
    "signs flipped": sign_flipped,
    "signs flipped, 4.5-fold": far_flipped,
    "9 times the model": beyond_the_model,
}


def flipped_labels(labels: np.ndarray, classes: int) -> np.ndarray:
    """(n, 1) class indices counted from the other end."""
    return classes - 1 - labels


def _scaled(update: Update, sent: Tensors, factor: float) -> Update:
    """What was learned times `factor`; the statistics stay: a variance below zero is refused."""

    def moved(name: str, value: np.ndarray) -> np.ndarray:
        if is_statistic(name):
            return value
        return np.asarray(sent[name] + factor * (value - sent[name]), value.dtype)

    return _each_float(update, moved)


def _each_float(update: Update, change: Callable[[str, np.ndarray], np.ndarray]) -> Update:
    weights = {
        name: change(name, value) if value.dtype.kind == "f" else value
        for name, value in update.weights.items()
    }
    return replace(update, weights=weights)
