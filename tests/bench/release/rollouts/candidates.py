"""The versions that rollouts are made of: several that are equally good, and worse ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from tests.bench.release.answers import People, Window, fine_tuned, share, worse_by

# Of models that are trained again. Those of the first seeds were looked at when the constants of
# the test were chosen.
SEEDS = range(11, 19)
BASES = 4  # of them are made worse, each in another direction
EVEN = 0.01  # agreements that differ by less are equally good
EQUAL = "trained again, as good"
WORSE = {"worse by 5 points": 0.05, "worse by 25 points": 0.25}


@dataclass(frozen=True)
class Candidates:
    """`windows` by person, with what every model answers; `pairs` of a stable version and a
    candidate, and the candidates' mean agreement, by kind."""

    classes: tuple[str, ...]
    windows: Mapping[str, list[Window]]
    pairs: Mapping[str, list[tuple[str, str]]]
    agreement: Mapping[str, float]


def candidates(people: People, *, quick: bool = False) -> Candidates:
    """Train and spoil the models; answer with each of them."""
    seeds = SEEDS[:3] if quick else SEEDS
    weights = dict(zip((f"seed {seed}" for seed in seeds), fine_tuned(people, seeds), strict=True))
    models = {name: people.agreement(one) for name, one in weights.items()}
    pairs = {EQUAL: even(models)}
    for kind, loss in WORSE.items():
        pairs[kind] = []
        for number, base in enumerate(list(weights)[: 1 if quick else BASES]):
            name = f"{base}, {kind}"
            models[name] = worse_by(people, weights[base], loss, seed=number)[1]
            pairs[kind].append((base, name))
    means = {
        kind: float(np.mean([share(models[candidate]) for _, candidate in found]))
        for kind, found in pairs.items()
    }
    return Candidates(tuple(people.task.classes), people.windows(models), pairs, means)


def even(models: Mapping[str, list[np.ndarray]]) -> list[tuple[str, str]]:
    """Return the ordered pairs of models that agree with the teacher about as often."""
    return [
        (one, other)
        for one, other in permutations(models, 2)
        if abs(share(models[one]) - share(models[other])) < EVEN
    ]
