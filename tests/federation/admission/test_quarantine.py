import numpy as np
import pytest

from federation.admission.quarantine import QUARANTINE_ROUNDS, STRIKES, Quarantine


def test_a_node_that_is_refused_twice_sits_out_three_rounds() -> None:
    assert (STRIKES, QUARANTINE_ROUNDS) == (2, 3)
    conduct = Quarantine()
    conduct.refuse(7, "norm", 1)
    assert conduct.quarantined_until(7, 2) is None
    conduct.refuse(7, "samples", 4)
    assert [conduct.quarantined_until(7, number) for number in (5, 6, 7, 8)] == [7, 7, 7, None]
    assert conduct.quarantined_until(8, 5) is None


def test_after_that_it_counts_anew() -> None:
    conduct = Quarantine()
    for number in (1, 2, 6):
        conduct.refuse(7, "norm", number)
    assert conduct.quarantined_until(7, 7) is None
    conduct.refuse(7, "norm", 7)
    assert conduct.quarantined_until(7, 8) == 10


@pytest.mark.parametrize("reason", ["name", "duplicate"])
def test_a_name_that_two_nodes_use_makes_neither_sit_out(reason: str) -> None:
    conduct = Quarantine()
    for number in range(1, 6):
        conduct.refuse(7, reason, number)
        assert conduct.quarantined_until(7, number + 1) is None
    assert conduct.refused == {7}


def test_it_remembers_what_was_received() -> None:
    conduct = Quarantine()
    conduct.remember([{"w": np.zeros(2)}, {"w": np.zeros(2)}, {"w": np.ones(2)}])
    assert len(conduct.received) == 2
