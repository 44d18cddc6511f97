"""exltune finds, proves and builds the best EXL3 quant of a model for a budget.

    measurement = exltune.load_measurement("measurement.json")
    recipe = exltune.optimize(measurement, target_bpw=3.15)
    tuned = exltune.build(recipe, quants="quants/", out="tuned/")
    table = exltune.evaluate("MODEL", [tuned.path])

Names are imported when they are first used: `import exltune` itself costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exltune import errors as errors
    from exltune.errors import ExltuneError as ExltuneError
    from exltune.library.build import Built as Built
    from exltune.library.build import build as build
    from exltune.library.compare import compare as compare
    from exltune.library.evaluate import evaluate as evaluate
    from exltune.library.files import load_measurement as load_measurement
    from exltune.library.files import load_recipe as load_recipe
    from exltune.library.measure import measure as measure
    from exltune.library.optimize import optimize as optimize
    from exltune.library.plan import plan as plan
    from exltune.library.quantize import quantize as quantize
    from exltune.library.sessions import open_session as open_session
    from exltune.library.tables import EvaluationTable as EvaluationTable
    from exltune.library.tune import tune as tune
    from exltune.pipeline.common.session import Session as Session
    from exltune.schema.measurement import Measurement as Measurement
    from exltune.schema.recipe import Recipe as Recipe
    from exltune.schema.tokens import DataOptions as DataOptions

__version__ = "0.1.0"

__all__ = [
    "Built",
    "DataOptions",
    "EvaluationTable",
    "ExltuneError",
    "Measurement",
    "Recipe",
    "Session",
    "build",
    "compare",
    "errors",
    "evaluate",
    "load_measurement",
    "load_recipe",
    "measure",
    "open_session",
    "optimize",
    "plan",
    "quantize",
    "tune",
]

#: Public name -> the module that has it.
_HOMES = {
    "Built": "exltune.library.build",
    "DataOptions": "exltune.schema.tokens",
    "EvaluationTable": "exltune.library.tables",
    "ExltuneError": "exltune.errors",
    "Measurement": "exltune.schema.measurement",
    "Recipe": "exltune.schema.recipe",
    "Session": "exltune.pipeline.common.session",
    "build": "exltune.library.build",
    "compare": "exltune.library.compare",
    "evaluate": "exltune.library.evaluate",
    "load_measurement": "exltune.library.files",
    "load_recipe": "exltune.library.files",
    "measure": "exltune.library.measure",
    "open_session": "exltune.library.sessions",
    "optimize": "exltune.library.optimize",
    "plan": "exltune.library.plan",
    "quantize": "exltune.library.quantize",
    "tune": "exltune.library.tune",
}


def __getattr__(name: str) -> object:
    """A public name, imported now."""
    if name in _HOMES:
        found: object = getattr(import_module(_HOMES[name]), name)
    elif name == "errors":
        found = import_module("exltune.errors")
    else:
        raise AttributeError(f"module 'exltune' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """The public names, for completion; nothing is imported."""
    return [*__all__, "__version__"]
