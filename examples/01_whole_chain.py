"""The whole chain with the library: base quants, a measurement, a recipe, the model, and a table of them all.

Usage: python examples/01_whole_chain.py [MODEL [FOLDER]]. Run again, it goes on with what is in the folder.
The settings are small: a real model wants the defaults, and `exltune.tune` does all of this in one call.
"""

import sys
from pathlib import Path

import exltune

MODEL, FOLDER = [*sys.argv[1:3], *("models/glm4moe", "out/examples")[len(sys.argv[1:3]) :]]
TARGET_BPW = 3.4


def main() -> None:
    folder = Path(FOLDER)
    quants = folder / "quants"
    # Model, quants, texts and engine are opened once for all calls, and no mix is scored twice.
    with exltune.open_session(MODEL, quants=quants, store=folder / "scores.db", rows=32, row_length=32) as session:
        exltune.quantize(session, quants, bits=[2, 3, 4])
        measurement = exltune.measure(session, level=2, budget="all", out=folder / "measurement.json", force=True)
        recipe = exltune.optimize(
            measurement, target_bpw=TARGET_BPW, passes=4, session=session, out=folder / "recipe.yaml", force=True
        )
        tuned = exltune.build(recipe, session=session, out=folder / "tuned", force=True)
        table = exltune.evaluate(session, [quants / "3bpw_H6", tuned])
    print(f"{tuned.path}: {tuned.bpw:.3f} bpw, {tuned.size_bytes:,} bytes\n\n{table.to_markdown()}")


if __name__ == "__main__":
    main()
