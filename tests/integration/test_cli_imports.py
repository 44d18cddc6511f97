"""Commands whose work needs no tensors do not wait for torch, and neither does a mistake in the arguments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODEL, MEASUREMENT = ROOT / "models" / "qwen3", ROOT / "measurements" / "qwen3.json"
_HARNESS = """
import sys
from exltune.cli import main
sys.argv = ["exltune", *sys.argv[1:]]
try:
    main()
    code = 0
except SystemExit as end:
    code = end.code
print(code, *sorted({"torch", "transformers"} & set(sys.modules)))
"""


def run(*arguments: object) -> str:
    """Exit code of a command in a process of its own, and which heavy packages it loaded."""
    words = [sys.executable, "-c", _HARNESS, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout, done.stderr
    return done.stdout.splitlines()[-1]


def test_the_harness_sees_torch() -> None:
    assert run("inspect", MODEL) == "0 torch"


def test_from_a_measurement_to_an_explanation(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    assert run("report", MEASUREMENT, "--out", tmp_path / "report.html") == "0"
    assert run("tradeoff", MEASUREMENT, "--contexts", "1024", "--vram", "2GiB", "--model", MODEL) == "0"
    assert run("optimize", MEASUREMENT, "--target-bpw", "3.2", "--out", recipe) == "0"
    assert run("explain", recipe, "--model", MODEL, "--measurement", MEASUREMENT) == "0"


def test_plan_and_deploy(tmp_path: Path) -> None:
    config, cards = MODEL / "config.json", ("--bits", 3, "--gpus", "1x24GiB", "--context", 256)
    assert run("plan", config, *cards) == "0"
    assert run("plan", MODEL, *cards) == "0"
    there = ("--models", tmp_path, "--model-name", "mix", "--out", tmp_path / "tabby")
    assert run("deploy", "tabby", config, *cards, *there) == "0"


def test_what_was_measured(measurement: Path) -> None:
    assert run("measurements", "list", measurement.parent) == "0"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--bits", "none", "--target-bpw", 3),
        ("--gpus", "3"),
        ("--level", "l9", "--target-bpw", 3),
        ("--rows", 1),
        ("--weights", "math", "--target-bpw", 3),
        ("--time", "soon", "--target-bpw", 3),
        ("--cache", "auto", "--target-bpw", 3),
        ("--engine", "none", "--target-bpw", 3),
        (),
    ],
)
def test_mistakes_in_the_arguments_of_tune(arguments: tuple[object, ...], tmp_path: Path) -> None:
    assert run("tune", MODEL, "--out", tmp_path / "out", *arguments) == "2"


def test_other_mistakes(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    assert run("tune", absent, "--out", tmp_path / "out", "--target-bpw", 3) == "10"
    assert run("card", absent, "--out", tmp_path / "card.md") not in ("0", "1")
    assert run("build", absent, "--quants", absent, "--out", tmp_path / "mix") == "5"
