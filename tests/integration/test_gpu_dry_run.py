"""The run on a GPU, rehearsed: the same path through the stand-in for exllamav3's kernels, to the same JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from real_models import LLAMA, write_model

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"

pytestmark = pytest.mark.slow

PREPARE = """
import sys
from pathlib import Path
from parity.kit import Kit, prepare
sizes = {"rows": 32, "row_length": 32, "scored_rows": 4, "tiles": 1, "tile_bits": (3,)}
kit, folder = Kit(model=sys.argv[2], widths=(2.0, 3.0), **sizes), Path(sys.argv[1])
for _ in range(2):
    prepare(folder, kit, print)
    print("again")
"""


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kit of a small model, made as one for the box is, but for wheels and the extension."""
    folder = tmp_path_factory.mktemp("kit")
    model = write_model(folder / "model", "Llama", {**LLAMA, "num_key_value_heads": 2})
    words = [sys.executable, "-c", PREPARE, str(folder / "kit"), str(model)]
    environment = {**os.environ, "PYTHONPATH": f"{BENCHMARKS}:{ROOT}"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, again, _ = done.stdout.split("again\n")
    assert "scores.json: being made" in first
    assert "being made" not in again, "what is there is kept"
    return folder / "kit"


@pytest.fixture(scope="module")
def found(kit: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of a dry run of all steps in one call."""
    folder = tmp_path_factory.mktemp("run")
    words = ["--kit", kit, "--dry-run", "--out", folder / "out", "--work", folder / "work"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu_parity.py"), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "out" / "logs.txt").is_file()
    return dict(json.loads((folder / "out" / "dry-run-without-a-card.json").read_text()))


def test_every_step_is_taken_and_within_its_seconds(found: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from parity.schedule import STEPS

    assert found.pop("card") == {"name": "dry run without a card"}
    assert list(found) == [step.name for step in STEPS]
    for step in STEPS:
        assert found[step.name]["ok"]
        assert 0 < found[step.name]["seconds"] <= step.seconds


def test_the_results_are_those_that_must_be_known(found: dict[str, Any]) -> None:
    assert found["install"]["versions"]["exllamav3"] == "1.6.5"
    assert 0 < found["extension"]["hadamard_error"] < 0.01
    assert found["tests"]["passed"] > 2
    assert not found["tests"]["failed"]
    # In fp16 through exllamav3's own Python, against fp32 in transformers.
    uniform = found["scores"]["mixes"][0]
    assert uniform["mix"] == "uniform 2"
    assert uniform["kl_ref_mix"] > 0.05
    assert 0 < abs(uniform["difference"]) < 0.002
    assert found["scores"]["largest_difference_of_repeats"] == 0.0
    assert {"one", "many", "reading"} <= set(found["throughput"]["scoring"])
    assert set(found["throughput"]["serving"]) == {"uniform", "mixed_fused", "mixed_unfused"}
    assert found["encoder"]["bits"]["3"]["nmse"] == pytest.approx(found["encoder"]["bits"]["3"]["nmse_fp32"])
    assert found["memory"]["cells"][0]["planned"]["kv_bytes"] > 0
    quality = found["conversion"]["quality"]
    # 32 tokens calibrate nothing: of the same order is all that can be asked for.
    assert quality["kl_ref_mix"] / 2 < quality["kl_ref_mix_here"] < 2 * quality["kl_ref_mix"]
    assert found["conversion"]["rate"]["weights"] > 100_000
    chain = found["chain"]
    assert chain["quants"]["model"]["kl_ref_quant"] < chain["quants"]["2bpw_H6"]["kl_ref_quant"]
    assert chain["standings"]


def test_figures_of_a_dry_run_are_called_meaningless(found: dict[str, Any]) -> None:
    assert "no GPU" in found["throughput"]["meaningless"]
