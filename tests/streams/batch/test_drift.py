"""The drift of a job is the stream's, adds up over shards, and sees what a mean of distances hides;
the report shows it."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.batch.jobs.answers import drift_of, mean_of_distances, metrics_of, observed_of
from streams.batch.jobs.job_folder import Models
from streams.batch.jobs.manifest import manifest_of, report_of, summary_of
from streams.batch.progress import ClassCounts, Counts, Observed
from streams.contract.artifact import DRIFT, Artifact, files_of, pack, unpack
from streams.contract.task import Task
from streams.contract.task.metrics import measured
from streams.learning.drift_detector import compare, hellinger, shares, total_variation
from streams.learning.drift_reference import (
    Feature,
    Reference,
    cells_of,
    frozen_edges,
    observe,
    reference_of,
)
from streams.learning.onnx_model import OnnxModel
from tests.rig.made_up.killed import Killed, killed_at
from tests.rig.made_up.models import segments, tiny
from tests.streams.batch.support import (
    KEY,
    Submitted,
    good_rows,
    model,
    model_bytes,
    submitted,
    write_parquet,
)

# --- verdicts -------------------------------------------------------------------------------------


def feature(channel: str, values: np.ndarray, kind: Any = "mean", effect: float = 0.25) -> Feature:
    edges = frozen_edges(tiny, kind, values)
    counts = np.bincount(cells_of(edges, values), minlength=len(edges) + 3).tolist()
    ordered = kind != "answer"
    return Feature(
        channel=channel, kind=kind, ordered=ordered, edges=edges.tolist(), counts=counts,
        effect=effect,
    )  # fmt: skip


def test_a_shift_of_one_deviation_in_every_feature_is_seen_by_ours_and_missed_by_a_mean() -> None:
    noise = np.random.default_rng(0)
    names = [f"c{i}" for i in range(6)]
    before = {name: noise.normal(size=5000) for name in names}
    reference = Reference(independent=0.5, features=[feature(n, v) for n, v in before.items()])
    now = np.concatenate(
        [
            np.bincount(
                cells_of(np.asarray(one.edges), noise.normal(1.0, size=5000)),
                minlength=len(one.counts),
            )
            for one in reference.features
        ]
    )
    theirs = mean_of_distances(reference, now)
    ours = compare(reference, now, windows=1)
    assert (theirs.status, ours.alarm, ours.share) == ("none", True, 1.0)
    # it is not our cells: with twenty bins, as MLRun has them, it is the same
    edges = np.linspace(-4, 5, 21)
    p, q = (shares(np.histogram(x, edges)[0]) for x in (before["c0"], noise.normal(1.0, size=5000)))
    assert 0.3 < (total_variation(p, q) + hellinger(p, q)) / 2 < 0.5


@pytest.mark.parametrize(
    ("shift", "status"), [(0.0, "none"), (2.0, "potential"), (100.0, "detected")]
)
def test_the_mean_of_distances_has_the_thresholds_of_mlrun(shift: float, status: str) -> None:
    noise = np.random.default_rng(0)
    values = noise.normal(size=5000)
    reference = Reference(independent=0.5, features=[feature("c", values)])
    cells = cells_of(np.asarray(reference.features[0].edges), values + shift)
    found = mean_of_distances(reference, np.bincount(cells, minlength=8))
    assert found.status == status


# --- jobs -----------------------------------------------------------------------------------------


@cache
def with_reference() -> bytes:
    """The model with the reference of segments as good_rows makes them."""
    engine = OnnxModel(tiny, model())
    seen = segments(2000, 99)
    outputs = engine.run(seen)
    features = [
        feature(channel, values, kind)
        for (channel, kind), values in observe(tiny, seen, outputs).items()
    ]
    reference = Reference(independent=0.5, minimum=100, features=features)
    manifest, files = files_of(model_bytes())
    return pack(manifest, {**files, DRIFT: reference.encode()}, KEY)


def artifact() -> Artifact:
    return unpack(with_reference(), [KEY.public_key()], task="tiny", task_version=1)


def job_of(place: Path, rows: list[dict[str, Any]], to: str = "out") -> Submitted:
    path = write_parquet(place / f"{to}.parquet", rows)
    return submitted(place, path, to=to, using=Models(artifact(), with_reference()))


def test_the_drift_of_a_job_is_the_streams_over_all_rows_that_have_answers(tmp_path: Path) -> None:
    rows = good_rows(400)
    rows[5]["segment"] = [1.0]
    rows[6]["label"] = None
    found = job_of(tmp_path, rows).run()
    kept = [row for i, row in enumerate(rows) if i != 5]
    whole = np.array([r["segment"] for r in kept], np.float32).reshape(-1, *tiny.segment_shape)
    outputs = OnnxModel(tiny, model()).run(whole)
    reference = reference_of(artifact())
    assert reference is not None
    counts = reference.count(observe(tiny, whole, outputs))
    assert found.drift is not None
    assert found.drift.inputs_and_answers == compare(reference, counts, windows=1)
    assert not found.drift.inputs_and_answers.alarm
    assert found.drift.mean_of_distances.status == "none"
    right = tiny.correct(
        outputs, np.array([[tiny.classes.index(r["label"] or "slow")] for r in kept])
    )
    assert tuple(found.classes) == tiny.classes
    labels, answers = [row["label"] for row in kept], tiny.answers(outputs)
    for at, (name, one) in enumerate(found.classes.items()):
        chosen = [i for i, label in enumerate(labels) if label == name]
        assert (one.labelled, one.correct) == (len(chosen), int(right[chosen].sum()))
        so_answered = [i for i in np.flatnonzero(answers == at) if labels[i] is not None]
        assert one.answered == len(so_answered)
        assert one.precision == (right[so_answered].mean() if so_answered else None)
        assert one.recall == right[chosen].mean()
    rare = ClassCounts(labelled=4, correct=1, answered=0)
    of_two = found.replace(classes={"usual": ClassCounts(), "rare": rare})
    assert "rare: recall 0.250, precision -" in summary_of(of_two)


def test_with_top_k_a_row_answers_k_classes() -> None:
    outputs, labels = np.array([[3.0, 2.0, 1.0], [1.0, 3.0, 2.0]]), np.array([[1.0], [0.0]])
    found = observed_of(replace(tiny, metric="top_2"), None, outputs, outputs, labels).classes
    assert [(one.answered, one.correct) for one in found.values()] == [(1, 0), (2, 1), (1, 0)]


TARGETS = replace(tiny, classes=(), targets=("speed", "load"))
BINARY = replace(tiny, classes=("usual", "rare"), threshold=0.3)


@given(st.integers(2, 25), st.integers(0, 2**32 - 1), st.sampled_from([tiny, BINARY, TARGETS]))
def test_metrics_of_sums_over_shards_are_those_of_all_rows(n: int, seed: int, task: Task) -> None:
    dice = np.random.default_rng(seed)
    size, unlabelled = len(task.classes or task.targets), np.full((1, task.label_size), np.nan)
    outputs = dice.normal(size=(n, size)).astype(np.float32)
    outputs[:, 1] = outputs[:, 0] + dice.permutation(n) - n // 2  # no two in one cell of SCORES
    labels = dice.integers(0, size, (n, task.label_size)).astype(np.float32)
    counts = Counts()
    for rows in np.split(np.arange(n), sorted(dice.integers(0, n, 3))):
        answers = np.concatenate([outputs[rows], outputs[:1]])
        truth = np.concatenate([labels[rows], unlabelled])
        observed = observed_of(task, None, answers, answers, truth)
        counts = counts.plus(Counts(labelled=len(rows), observed=observed))
    wanted = measured(task, outputs, labels)
    del wanted["accuracy" if task.classes else "within"]  # `Manifest.accuracy`
    if len(task.classes) > 2:  # AUC and average precision need the order of all rows
        wanted = {name: wanted[name] for name in ("balanced_accuracy", "macro_f1")}
    assert metrics_of(counts) == pytest.approx(wanted, rel=1e-4)


def test_of_many_rows_metrics_without_a_threshold_are_near_those_of_the_order() -> None:
    dice = np.random.default_rng(7)
    labels = (dice.random((100_000, 1)) < 0.01).astype(np.float32)
    rare = dice.normal(5 * labels[:, 0] - 8, 2.0)  # of which most rows are in few cells
    outputs = np.stack([np.zeros_like(rare), rare], axis=1)
    observed = observed_of(BINARY, None, outputs, outputs, labels)
    found = metrics_of(Counts(labelled=len(labels), observed=observed))
    wanted = measured(BINARY, outputs, labels)
    assert found["auc"] == pytest.approx(wanted["auc"], abs=0.001)
    assert found["average_precision"] == pytest.approx(wanted["average_precision"], abs=0.002)


def test_shifted_input_is_drift_in_the_manifest_and_resuming_counts_nothing_twice(
    tmp_path: Path,
) -> None:
    rows = good_rows(400)
    for row in rows:
        row["segment"] = [x + 2.0 for x in row["segment"]]
    whole = job_of(tmp_path, rows, "whole").run()
    assert whole.drift is not None
    assert whole.drift.inputs_and_answers.alarm

    job = job_of(tmp_path, rows, "out")
    for _ in range(2):
        with pytest.raises(Killed):
            job.run(reached=killed_at("score-step-5"))
    again = job.run(processes=2)
    assert (again.drift, again.classes, again.metrics) == (
        whole.drift,
        whole.classes,
        whole.metrics,
    )
    assert f"macro F1 {whole.metrics['macro_f1']:.3g}" in "\n".join(summary_of(again))


def test_too_few_rows_are_undecided_and_a_model_without_reference_has_no_drift(
    tmp_path: Path,
) -> None:
    few = job_of(tmp_path, good_rows(30)).run()
    assert few.drift is not None
    assert not few.drift.inputs_and_answers.decided
    none = submitted(tmp_path, write_parquet(tmp_path / "b.parquet", good_rows(30)), to="b")
    assert none.run().drift is None
    assert drift_of(None, Observed()) is None


# --- the report -----------------------------------------------------------------------------------


def test_the_report_is_one_page_with_counts_drift_accuracy_and_errors(tmp_path: Path) -> None:
    rows = good_rows(400)
    for row in rows:
        row["segment"] = [x + 2.0 for x in row["segment"]]
    rows[5]["segment"] = [1.0]
    job = job_of(tmp_path, rows, "a|b")
    assert "not measured" in report_of("id", manifest_of(job.folder))
    assert job.run(timeout=1e-9).state == "PartiallyCompleted"
    assert "PartiallyCompleted" in job.folder.report.read_text()
    found = job.run()
    text = job.folder.report.read_text()
    for wanted in (
        "Completed", "wrong-width", "400 of 400", "of the channels", "as MLRun decides it", "slow",
        "a\\|b", f"{found.correct / found.labelled:.3g}",
    ):  # fmt: skip
        assert wanted in text, wanted
