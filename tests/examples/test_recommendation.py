"""The example of recommendation: its clicks, its labels, and what its model learns from them."""

from itertools import islice, pairwise

import numpy as np

from compose.preflight import check_task
from examples.recommendation.task import ITEM, PAUSE_S, SECOND_US, sessions, task
from federation.bootstrap.dataset import segments_of_device
from streams.contract.task import Answered
from streams.contract.task.metrics import measured
from streams.learning.learning import build_model, fit, predict, segment_loss
from streams.segments.segmentation import segments_of
from streams.segments.survey import TaskReadings


def test_check_finds_no_error() -> None:
    assert [one for one in check_task(task).findings if one.level == "error"] == []


def test_a_label_is_the_next_click_of_the_session_and_outcomes_say_the_same() -> None:
    [user] = task.device_names("fleet")[:1]
    then = {now[0]: item for one in sessions(user) for now, (_, item) in pairwise(one)}
    cuts = list(islice(segments_of(TaskReadings(task, user), task), 300))
    found = {last: None if label is None else int(label[0]) for _, last, _, label in cuts}
    assert found == {last: then.get(last) for last in found}
    assert all(last - first <= 2 * PAUSE_S * SECOND_US for first, last, _, _ in cuts)
    assert {0 < index < ITEM.size for _, _, segment, _ in cuts for index in segment[0]} == {True}
    answers = [
        Answered(first, last, segment, np.zeros(task.outputs), seq)
        for seq, (first, last, segment, _) in enumerate(cuts)
    ]
    assert task.outcomes is not None
    later = {one.last_us: one.label for one in task.outcomes(user, iter(answers))}
    assert later == {
        last: item for last, item in found.items() if item is not None and last != cuts[-1][1]
    }


def test_what_many_users_know_is_learned() -> None:
    def rows(users: list[str]) -> tuple[np.ndarray, np.ndarray]:
        parts = [segments_of_device(task, user) for user in users]
        segments = np.concatenate([part.segments for part in parts])
        labels = np.concatenate([part.labels for part in parts])
        known = ~np.isnan(labels[:, 0])
        return segments[known], labels[known]

    model, held_out = build_model(task), rows(task.device_names("held-out"))
    found = []
    for role in ("pilot", "fleet"):
        segments, labels = rows(task.device_names(role))
        fit(
            model, len(segments), segment_loss(task, model, segments, labels), epochs=5,
            batch_size=32, learning_rate=task.training.learning_rate, seed=0, optimizer="adamw",
        )  # fmt: skip
        found.append(measured(task, predict(model, held_out[0]), held_out[1])["top_5"])
    assert found[0] < 0.3
    assert found[1] > 0.75
