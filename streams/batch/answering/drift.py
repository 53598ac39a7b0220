"""The drift of a whole job: the stream's verdict, and that of MLRun beside it.

MLRun's rule (its histogram data drift application): the mean over all features of the total
variation distance, and of the Hellinger distance; the mean of the two is "detected" from 0.7 on and
"potential" from 0.5 on. A mean over features hides one that has moved far, and a shift of a
standard deviation in every feature gives 0.36.
"""

import numpy as np

from streams.batch.records.progress import JobDrift, MeanOfDistances, Observed
from streams.contract.window_report import ChannelDrift
from streams.drift.detector import compare
from streams.drift.distances import hellinger, shares, total_variation
from streams.drift.reference import Reference

POTENTIAL, DETECTED = 0.5, 0.7


def drift_of(reference: Reference | None, observed: Observed) -> JobDrift | None:
    """Return the drift of all rows of a job, None without a reference or rows."""
    if reference is None or len(observed.cells) != reference.cells:
        return None
    counts = np.asarray(observed.cells, np.int64)
    labels: list[ChannelDrift] = []
    if len(observed.label_cells) == reference.cells:
        told = np.asarray(observed.label_cells, np.int64)
        labels = compare(reference, told, windows=1).channels if told.any() else []
    return JobDrift(
        inputs_and_answers=compare(reference, counts, windows=1),
        labels=labels,
        mean_of_distances=mean_of_distances(reference, counts),
    )


def mean_of_distances(reference: Reference, counts: np.ndarray) -> MeanOfDistances:
    """Return MLRun's verdict over all features that have values."""
    found = []
    for feature, own in zip(reference.features, reference.split(counts), strict=True):
        if own.any():
            p, q = shares(np.asarray(feature.counts)), shares(own)
            found.append((float(total_variation(p, q)), float(hellinger(p, q))))
    mean = float(np.mean(found)) if found else 0.0
    value = round(mean, 6)
    if mean >= DETECTED:
        return MeanOfDistances(value=value, status="detected")
    return MeanOfDistances(value=value, status="potential" if mean >= POTENTIAL else "none")
