"""The same commands with either engine: what is measured is the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import succeed

from tests.standin.devices import exllamav3_devices
from tests.standin.hook import native

pytestmark = pytest.mark.gpu


def test_a_measurement_is_that_of_the_reference_engine(
    moe_model: Path, quants: Path, measurement: Path, data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[list[int]] = []
    monkeypatch.setattr(
        "exltune.engines.exllamav3.engine.named_devices",
        lambda numbers: named.append(numbers) or exllamav3_devices()[:1],
    )
    out = tmp_path / "measurement.json"
    words = ("measure", moe_model, "--quants", quants, "-l3", "--budget", "all", "--out", out, "--engine", "exllamav3")
    told = succeed(*words, "--devices", "0", "--max-ram", "1GiB", "--max-vram", "4GiB", *data)["probes"]
    assert named == [[0]]
    assert told["ram_bytes"] > 100 << 20
    assert (told["vram_bytes"] > 0) == torch.cuda.is_available()
    found, expected = json.loads(out.read_text()), json.loads(measurement.read_text())
    assert found["base_kld"] == pytest.approx(expected["base_kld"], rel=0.05 if native() else 0.01)
    assert found["exltune"]["provenance"]["engine"] == "exllamav3"
    pairs = list(zip(rows_of(found), rows_of(expected), strict=True))
    assert len(pairs) > 100
    errors = [abs(ours - theirs) for ours, theirs in pairs]
    # Where two experts are nearly as likely, rounding to fp16 sends a token elsewhere: a row in fifty. Kernels round
    # more often than the stand-in.
    near, strays, most = (4e-3, 1 / 4, 0.2) if native() else (1e-3, 1 / 30, 0.05)
    assert sum(error > near for error in errors) < len(errors) * strays
    assert max(errors) < most


def rows_of(measurement: dict[str, Any]) -> list[float]:
    """KL of every row of every swap that was scored, in nats/token."""
    probes = [probe for group in measurement["exltune"]["groups"] for probe in group["probes"]]
    return [value for probe in probes for value in probe["kld_rows"]]
