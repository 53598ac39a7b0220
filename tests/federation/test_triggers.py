from hypothesis import given
from hypothesis import strategies as st

from federation.triggers import RECENT, Evidence, Rules, RunsSoFar, reason_to_run
from streams.contract.documents import DeviceState, ModelWindow, WindowReport

RULES = Rules(retrain_below=0.9, min_events=100, min_devices=2, min_interval_s=60)


def window(
    device: str, number: int, agreeing: int, model: str = "1-a", revision: int = 0
) -> WindowReport:
    return WindowReport(
        task="tiny",
        device=device,
        window_us=number,
        end_us=number + 1,
        revision=revision,
        events=60,
        teacher_model="1-t",
        models={model: ModelWindow(events=60, compared=50, agreeing=agreeing)},
    )


def state(device: str, labels: int) -> DeviceState:
    return DeviceState.model_validate(
        {
            "device": device,
            "task": "tiny",
            "time_us": 0,
            "epoch": "e",
            "active": "1-a",
            "produced": 0,
            "delivered": 0,
            "pending": 0,
            "labels_told": labels,
        }
    )


def evidence(*reports: WindowReport) -> Evidence:
    found = Evidence()
    found.serve("1-a")
    for report in reports:
        found.add_window(report)
    return found


LOW = (window("d0", 0, 40), window("d1", 0, 40))


def test_low_agreement_of_enough_devices_is_a_cause() -> None:
    reason = reason_to_run(RULES, evidence(*LOW), RunsSoFar(), 0.0, 0.0)
    assert (
        reason == "1-a agrees with the teacher on 0.800 of 100 events from 2 devices, below 0.900"
    )


def test_what_is_no_cause() -> None:
    few_devices = evidence(window("d0", 0, 0), window("d0", 1, 0))
    few_events = evidence(window("d0", 0, 0))
    good = evidence(window("d0", 0, 45), window("d1", 0, 45))
    other = evidence(window("d0", 0, 0, model="2-b"), window("d1", 0, 0, model="2-b"))
    for case in (few_devices, few_events, good, other, Evidence()):
        assert reason_to_run(RULES, case, RunsSoFar(), 0.0, 0.0) is None


def test_one_run_at_a_time_not_too_soon_and_not_too_many() -> None:
    low = evidence(*LOW)
    rules = Rules(retrain_below=0.9, min_events=100, min_devices=2, max_runs=2)
    assert reason_to_run(rules, low, RunsSoFar(1, True, 0.0), 1e6, 0.0) is None
    assert reason_to_run(rules, low, RunsSoFar(1, False, 0.0), 59.0, 0.0) is None
    assert reason_to_run(rules, low, RunsSoFar(1, False, 0.0), 61.0, 0.0) is not None
    assert reason_to_run(rules, low, RunsSoFar(2, False, 0.0), 1e6, 0.0) is None


def test_a_window_that_comes_again_counts_once_and_revisions_sum() -> None:
    low = evidence(LOW[0], LOW[0], window("d0", 0, 10, revision=1))
    assert (low.events, low.agreement) == (100, 0.5)


def test_another_model_or_a_run_starts_the_evidence_anew() -> None:
    low = evidence(*LOW)
    low.serve("1-a")
    assert low.events == 100
    low.run_began()
    assert low.events == 0
    low = evidence(*LOW)
    low.serve("2-b")
    assert (low.events, low.devices) == (0, 0)


def test_new_true_labels_are_a_cause_once() -> None:
    rules = Rules(retrain_below=0.9, new_labels=10)
    seen = Evidence()
    seen.add_device(state("d0", 6))
    assert reason_to_run(rules, seen, RunsSoFar(), 0.0, 0.0) is None
    seen.add_device(state("d1", 4))
    assert reason_to_run(rules, seen, RunsSoFar(), 0.0, 0.0) == "10 new true labels, 10 are enough"
    seen.run_began()
    assert seen.new_labels == 0
    seen.add_device(state("d0", 0))  # it lost its labels
    seen.add_device(state("d0", 3))
    assert seen.new_labels == 3


def test_a_schedule_counts_from_the_last_run_or_from_the_start() -> None:
    rules = Rules(retrain_below=0.9, schedule_s=100.0)
    assert reason_to_run(rules, Evidence(), RunsSoFar(), 99.0, 0.0) is None
    assert reason_to_run(rules, Evidence(), RunsSoFar(), 100.0, 0.0) is not None
    assert reason_to_run(rules, Evidence(), RunsSoFar(1, False, 50.0), 149.0, 0.0) is None
    assert reason_to_run(rules, Evidence(), RunsSoFar(1, False, 50.0), 151.0, 0.0) is not None


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 99), st.integers(0, 50)), max_size=200))
def test_the_agreement_is_a_share_over_recent_windows(rows: list[tuple[int, int, int]]) -> None:
    seen = evidence(*(window(f"d{d}", n, agreeing) for d, n, agreeing in rows))
    assert 0 <= seen.agreement <= 1
    assert seen.events <= 50 * RECENT * 4
