"""The algorithms of exltune and the versions of their results; a result's identity names those it comes from.

Whoever changes results of an algorithm raises its version here and runs `python -m tests.golden.update`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Algorithm:
    """Code that decides results.

    version: another one where results are others. paths: its files and packages, relative to the package exltune; of
    two algorithms that name a file, it belongs to the one with the longer path.
    """

    name: str
    version: int
    paths: tuple[str, ...]


_TABLE = (
    # The parts of a model.
    Algorithm("inventory", 1, ("inventory", "schema/inventory.py", "schema/attention.py", "schema/mix.py")),
    # EXL3 from bits to weights, and the quantized KV cache.
    Algorithm("format", 1, ("exl3",)),
    # EXL3 from weights to bits.
    Algorithm(
        "codec",
        1,
        (
            "exl3/distortion.py",
            "exl3/hessian.py",
            "exl3/ldlq.py",
            "exl3/quantizer.py",
            "exl3/refit.py",
            "exl3/scale.py",
            "exl3/viterbi.py",
        ),
    ),
    Algorithm("quantize", 1, ("quantization",)),
    # Inputs of linears: Hessians, and the source of a tensor's saliency.
    Algorithm("capture.reference", 1, ("engines/reference/capture.py", "engines/reference/observe.py")),
    Algorithm("capture.exllamav3", 1, ("engines/exllamav3/capture.py",)),
    # exllamav3's own conversion, as it is called here.
    Algorithm("convert.exllamav3", 1, ("engines/exllamav3/converter.py", "engines/exllamav3/converter_child.py")),
    # Scores of mixes.
    Algorithm("score.reference", 1, ("engines/reference",)),
    Algorithm("score.exllamav3", 1, ("engines/exllamav3",)),
    Algorithm("streaming", 1, ("engines/streaming",)),
    Algorithm("metrics", 1, ("metrics", "schema/score.py")),
    # From texts to four token sets.
    Algorithm("token-sets", 1, ("corpora", "schema/tokens.py")),
    # A model's answers to prompts.
    Algorithm("generate", 1, ("engines/sampling.py", "publish/openai_client.py")),
    # Which mixes a measurement scores, and its numbers of them.
    Algorithm("measure", 1, ("measurement",)),
    Algorithm("size", 1, ("budget/size.py", "budget/directory.py")),
    # Memory of cards and RAM: weights, cache, transients; limits and plans.
    Algorithm("memory", 1, ("budget", "schema/hardware.py")),
    Algorithm("law", 1, ("search/law",)),
    Algorithm("rules", 1, ("search/rules", "schema/heuristics.py")),
    Algorithm("baselines", 1, ("search/baselines",)),
    Algorithm("search", 1, ("search", "pipeline/optimization/optimize.py")),
    # Which of the mixes found is handed over, and how it is held against others.
    Algorithm(
        "judge",
        1,
        (
            "search/loop/outcome.py",
            "search/loop/ranking.py",
            "evaluation",
            "pipeline/evaluation/verdict.py",
            "store/quants",
        ),
    ),
    # Directories from tensors.
    Algorithm("build", 1, ("assembly", "exl3/writer.py")),
)

ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType({algorithm.name: algorithm for algorithm in _TABLE})

#: Files and packages that decide no result: they parse, call, store, show and send.
IDLE = (
    "__init__.py",
    "cli",
    "engines/__init__.py",
    "engines/base.py",
    "engines/checks.py",
    "engines/ray",
    "engines/tasks.py",
    "errors.py",
    "library",
    "pipeline",
    "plugins.py",
    "publish",
    "requirements.py",
    "report",
    "schema",
    "store",
    "testing",
)


def owner_of(file: str) -> str | None:
    """The algorithm that a file (relative to the package, with slashes) belongs to; None where it decides nothing.

    Raises: KeyError for a file that no algorithm and no idle package names.
    """
    claims: dict[str, str | None] = {path: algorithm.name for algorithm in _TABLE for path in algorithm.paths}
    claims |= dict.fromkeys(IDLE)
    longest = max((path for path in claims if _holds(path, file)), key=len, default=None)
    if longest is None:
        raise KeyError(f"{file} is in no algorithm and in no idle package of exltune/schema/versions.py")
    return claims[longest]


def versions_of(names: Iterable[str]) -> dict[str, int]:
    """Algorithm -> its version. Raises: KeyError for an unknown one."""
    return {name: ALGORITHMS[name].version for name in names}


def _holds(path: str, file: str) -> bool:
    return file == path or file.startswith(f"{path}/")
