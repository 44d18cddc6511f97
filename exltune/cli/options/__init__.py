"""The options that commands share, each declared once: groups of them, and single ones."""

from exltune.cli.options.data import DataFlags
from exltune.cli.options.engine import EngineFlags
from exltune.cli.options.memory import MemoryFlags
from exltune.cli.options.numbers import parse_head, parse_level, parse_numbers, parse_time, parse_weights
from exltune.cli.options.output import CopyFlags, Force, Json, OutputFlags, ResultFlags
from exltune.cli.options.quants import Codebook, CodebookName, QuantFlags, WideQuantFlags
from exltune.cli.options.search import SearchFlags
from exltune.cli.options.single import (
    Calibrate,
    Level,
    MeasurementFile,
    Model,
    OneHead,
    Png,
    Quants,
    Recipe,
    RecipeModel,
    TrustData,
)
from exltune.cli.options.tasks import NeededTaskFlags, TaskFlags

__all__ = [
    "Calibrate",
    "Codebook",
    "CodebookName",
    "CopyFlags",
    "DataFlags",
    "EngineFlags",
    "Force",
    "Json",
    "Level",
    "MeasurementFile",
    "MemoryFlags",
    "Model",
    "NeededTaskFlags",
    "OneHead",
    "OutputFlags",
    "Png",
    "QuantFlags",
    "Quants",
    "Recipe",
    "RecipeModel",
    "ResultFlags",
    "SearchFlags",
    "TaskFlags",
    "TrustData",
    "WideQuantFlags",
    "parse_head",
    "parse_level",
    "parse_numbers",
    "parse_time",
    "parse_weights",
]
