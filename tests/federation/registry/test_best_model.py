"""--model best:METRIC: which version it is."""

from pathlib import Path
from unittest.mock import patch

import pytest

from federation.registry.catalog import best_model, named
from federation.registry.registry import Registry
from streams.contract.artifact import pack
from streams.contract.decisions import DesiredState
from streams.contract.errors import UsageError
from tests.federation.registry.test_registry import FILES, KEY, MANIFEST
from tests.rig.made_up.models import tiny

FIGURES: list[dict[str, float]] = [
    {"held_out": 0.7},
    {"held_out": 0.9, "audit_auc": 0.6, "audit_auc_base": 0.99, "audit_segments": 50.0},
    {"held_out": 0.9, "audit_auc": 0.8, "audit_rmse": 3.0},
    {"held_out": 0.8, "audit_auc": float("nan"), "audit_rmse": 2.0},
]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Four versions, numbered from 1."""
    found = Registry(tmp_path / "registry", "tiny", 1, [KEY.public_key()])
    for number, metrics in enumerate(FIGURES, 1):
        found.add(pack(MANIFEST.replace(number=number, metrics=metrics),
                       FILES, KEY))  # fmt: skip
    return found


def number(model: str) -> int:
    return int(model.partition("-")[0])


def test_the_best_version_by_the_tasks_metric_is_that_of_the_gate(registry: Registry) -> None:
    assert number(best_model(registry, tiny, "accuracy")) == 3  # of two equal ones the newer
    found = named(registry, tiny, "best:accuracy")
    assert found[0].model == best_model(registry, tiny, "accuracy")
    assert found[1] == registry.read(found[0].model)


def test_another_metric_is_that_of_the_audit_and_of_errors_the_smallest_wins(
    registry: Registry,
) -> None:
    assert number(best_model(registry, tiny, "auc")) == 3
    assert number(best_model(registry, tiny, "rmse")) == 4


def test_a_withdrawn_version_is_not_the_best(registry: Registry) -> None:
    third = best_model(registry, tiny, "auc")
    gone = DesiredState(withdrawn={third: "bad"})
    with patch.object(Registry, "desired", return_value=gone):
        assert number(best_model(registry, tiny, "auc")) == 2


@pytest.mark.parametrize("metric", ["beauty", "", "auc_base", "segments", "held_out"])
def test_a_metric_that_no_version_has_is_one_line(registry: Registry, metric: str) -> None:
    with pytest.raises(UsageError, match=r"no version .* known: accuracy, auc, rmse") as found:
        named(registry, tiny, f"best:{metric}")
    assert "\n" not in str(found.value)
