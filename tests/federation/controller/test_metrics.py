"""What Prometheus is told of runs, counted once however often the topic is read."""

import re
from pathlib import Path

from cryptography import x509

from compose.launcher.certificates import make_certificates
from federation.controller.metrics import FederationMetrics
from federation.registry import manual
from federation.registry.registry import Registry
from streams.contract.documents import DeviceState, RoundEvent, RoundKind
from tests.rig.made_up.documents import device_state
from tests.rig.made_up.registries import OLD, model, offer, registry_in
from tests.rig.made_up.registries import serve as let_serve


def event(kind: RoundKind, at: int, **fields: object) -> RoundEvent:
    return RoundEvent.of_fields({"run": "7", "kind": kind, "time_us": at, **fields})


EVENTS = [
    event("started", 1, round=1),
    event("admitted", 2, device="a", metrics={"epsilon": 9.0}),
    event("admitted", 3, device="b"),
    event("refused", 4, device="c", reason="norm: 9 is over 5 times the usual 0.1"),
    event("refused", 5, device="node 9", reason="sitting-out: its updates were refused"),
    event("failed", 6, device="d", reason="no reply within 10 s"),
    event("aggregated", 7, metrics={"seconds": 4.5, "admitted": 2.0, "epsilon": 1.5}),
    event("evaluated", 8, metrics={"held_out": 0.9}),
    event("failed", 9, reason="no update was admitted"),
]
LINES = {
    'tidewheel_federation_updates_total{outcome="admitted",reason=""} 2.0',
    'tidewheel_federation_updates_total{outcome="refused",reason="norm"} 1.0',
    'tidewheel_federation_updates_total{outcome="refused",reason="sitting-out"} 1.0',
    'tidewheel_federation_updates_total{outcome="failed",reason=""} 1.0',
    'tidewheel_federation_rounds_total{outcome="aggregated"} 1.0',
    'tidewheel_federation_rounds_total{outcome="failed"} 1.0',
    "tidewheel_federation_seconds 4.5",
    "tidewheel_federation_admitted 2.0",
    "tidewheel_federation_held_out 0.9",
    "tidewheel_federation_epsilon 1.5",
    "tidewheel_federation_runs_going 1.0",
}


def told(metrics: FederationMetrics) -> set[str]:
    lines = metrics.text().decode().splitlines()
    found = {line for line in lines if "_created" not in line}
    of_runs = {line for line in found if line.startswith("tidewheel_federation")}
    return of_runs - {"tidewheel_federation_leads 0.0"}


def test_each_event_counts_once_whatever_is_read_again() -> None:
    metrics = FederationMetrics()
    for _ in range(2):
        for one in EVENTS:
            metrics.view.learn(one)
    assert told(metrics) == LINES


def test_the_rollout_is_told_from_the_decisions_each_once(tmp_path: Path) -> None:
    registry = registry_in(tmp_path)
    first, second = model(registry, 1), model(registry, 2)
    let_serve(registry, first)
    offered = offer(registry, second)
    metrics = FederationMetrics(lambda: 0.0, lambda: offered.decision.time_us / 1e6 + 30)
    metrics.looked(leading=True)
    for device, refused in (("d0", second.model), ("d1", "9-00000000"), ("d2", first.model)):
        metrics.view.hear(heard(device, refused))
    for _ in range(2):
        decide(metrics, registry)
    lines = {
        "tidewheel_federation_leads 1.0",
        'tidewheel_federation_decisions_total{kind="served"} 1.0',
        'tidewheel_federation_decisions_total{kind="stage"} 1.0',
        "tidewheel_federation_decision 2.0",
        "tidewheel_federation_offered_share 0.05",
        "tidewheel_federation_stage 1.0",
        "tidewheel_federation_stage_seconds 30.0",
        f'tidewheel_federation_devices_refusing{{model="{first.model}"}} 1.0',
        f'tidewheel_federation_devices_refusing{{model="{second.model}"}} 1.0',
    }
    assert lines <= told(metrics)
    manual.roll_back(registry, OLD)
    decide(metrics, registry)
    metrics.looked(leading=False)
    after = told(metrics)
    assert 'tidewheel_federation_decisions_total{kind="rolled-back"} 1.0' in after
    assert {
        "tidewheel_federation_offered_share 0.0",
        "tidewheel_federation_stage_seconds 0.0",
    } <= after
    assert "tidewheel_federation_leads 1.0" not in after


def decide(metrics: FederationMetrics, registry: Registry) -> None:
    for decision in registry.decisions():
        metrics.view.decide(decision)


def heard(device: str, refused: str) -> DeviceState:
    return device_state(device, refused={refused: "late"})


def test_the_fleet_is_told_added_up_and_silent_devices_are_counted() -> None:
    metrics = FederationMetrics(lambda: 0.0, lambda: 100.0)
    for device, time_s, phase in (
        ("d0", 99, "running"),
        ("d1", 20, "running"),
        ("d2", 1, "stopped"),
    ):
        state = heard(device, "9-00000000")
        told_at = {"time_us": time_s * 1_000_000, "phase": phase, "events_per_s": 5.0, "pending": 2}
        metrics.view.hear(state.replace(**told_at, dropped={"spool-full": 3}))
    lines = metrics.text().decode().splitlines()
    assert {line for line in lines if line.startswith("tidewheel_fleet")} == {
        "tidewheel_fleet_devices 3.0",
        "tidewheel_fleet_silent 1.0",
        "tidewheel_fleet_events_per_second 5.0",
        "tidewheel_fleet_pending 6.0",
        "tidewheel_fleet_dropped 9.0",
    }


def test_the_end_of_each_certificate_is_told_and_what_is_none_is_left_out(tmp_path: Path) -> None:
    tls = make_certificates(tmp_path)
    (tmp_path / "superlink" / "noise.pem").write_text("noise")
    paths = sorted((tmp_path / "superlink").glob("*.pem"))
    lines = FederationMetrics(certificates=[*paths, tmp_path / "gone.pem"]).text().decode()
    found = x509.load_pem_x509_certificate(tls.certificate.read_bytes()).not_valid_after_utc
    name = "tidewheel_certificate_not_after_seconds"
    ends = dict(re.findall(rf'{name}{{file="(.*)"}} (.*)', lines))
    assert ends.keys() == {str(tls.certificate), str(tls.certificate.with_name("ca.pem"))}
    assert float(ends[str(tls.certificate)]) == found.timestamp()


def test_certificates_of_one_name_are_told_apart_and_one_file_is_told_once(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    ours = tmp_path / "superlink" / "ca.pem"
    kafkas = tmp_path / "ca.pem"
    kafkas.write_bytes(ours.read_bytes())
    lines = FederationMetrics(certificates=[ours, kafkas, kafkas]).text().decode().splitlines()
    ends = [line.split()[0] for line in lines if line.startswith("tidewheel_certificate")]
    name = "tidewheel_certificate_not_after_seconds"
    assert ends == [f'{name}{{file="{path}"}}' for path in (ours, kafkas)]
