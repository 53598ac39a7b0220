"""What the demo reads of its fleet while it waits."""

from pathlib import Path

import pytest

from examples.drift.running_fleet import failed_fits
from tests.edge_client.training.test_own_weights import ADAPTS, Device


def test_an_adapter_that_was_not_fitted_is_found_in_the_devices_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device = Device(tmp_path / "device", ADAPTS)
    device.serve(1)
    device.see(200)
    device.error = "stopped: the fit had not ended"
    device.consider()
    (tmp_path / "edge-person-19.log").write_text("started\n" + caplog.text)
    (tmp_path / "up.log").write_text(caplog.text)
    [line] = failed_fits(tmp_path)
    assert line.startswith("edge-person-19: ")
    assert line.endswith(f"of {device.slots.active}: {device.error}; the next try is in 120 s")
