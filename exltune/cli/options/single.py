"""Options and arguments that several commands take one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="Model directory: config.json and safetensors.")]
MeasurementFile = Annotated[Path, typer.Argument(metavar="FILE", help="Measurement file, from exltune measure.")]
Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file, from exltune optimize or exllamav3.")]
Quants = Annotated[
    Path, typer.Option("--quants", help="Directory with base quants, as quantize writes it.", show_default=False)
]
RecipeModel = Annotated[
    Path | None, typer.Option("--model", help="Model or config that the recipe belongs to.", show_default=False)
]
Level = Annotated[
    str,
    typer.Option(
        "--level",
        "-l",
        help="l0: layers; l1: attention, MLP; l2: their parts; l3: q, k+v, o, gate+up, down; l4: k, v, gate, up apart "
        "(not of routed experts), and each tensor's saliency. Also -l0 .. -l4.",
    ),
]
OneHead = Annotated[
    str | None, typer.Option("--head-bits", help="Bits of the head, or auto to choose them.", show_default=False)
]
TrustData = Annotated[
    bool, typer.Option("--trust-data", help="Take quants that may have been calibrated on the held-out text.")
]
Calibrate = Annotated[
    Path | None, typer.Option("--calibrate", help="Readings of a real machine (JSON).", show_default=False)
]
Png = Annotated[Path | None, typer.Option("--png", help="Draw it there too.", show_default=False)]
