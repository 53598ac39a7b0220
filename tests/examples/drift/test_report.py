"""What the drift demo says of its cause, and what its hostile device sends."""

import numpy as np
import pytest

from examples.drift import bad_candidates
from examples.drift.report import started_by


def test_who_started_the_run_without_a_remounted_phone_is_named() -> None:
    assert started_by(["a", "b"], []) == "the run was started by a, b"
    text = started_by(["a", "b"], ["b"])
    assert text.endswith("of b the phone was never remounted: a false alarm")
    assert started_by([], []) == "the run was started by no drift"


def test_a_hostile_device_goes_back_beyond_the_first_version_or_to_exchanged_labels() -> None:
    first, served, labels = ({"w": np.full(2, x, np.float32)} for x in (1.0, 3.0, 7.0))
    steps = bad_candidates.steps(first, served, {"labels exchanged": labels})
    back, exchanged = (served["w"] + step["w"] for step in steps.values())
    assert back == pytest.approx(np.full(2, -1.0))
    assert exchanged == pytest.approx(labels["w"])
