"""The best mix for GPUs and a context, from a measurement: bits of weights and of the KV cache are chosen together.

Usage: python examples/03_gpus_and_context.py [MEASUREMENT MODEL]
Base quants are not needed: without them the best prediction is taken, and nothing is scored.
"""

import sys

import exltune

DEFAULTS = ("measurements/glm4moe.json", "models/glm4moe")
MEASUREMENT, MODEL = sys.argv[1:3] if len(sys.argv) > 2 else DEFAULTS
#: Hardly any room beside CUDA and buffers: the model is small.
GPUS = "2x1194.2MiB"


def main() -> None:
    measurement = exltune.load_measurement(MEASUREMENT)
    for context in (256, 512, 1024):
        try:
            recipe = exltune.optimize(measurement, model=MODEL, gpus=GPUS, context=context, cache="auto", slots=1)
        except exltune.errors.BudgetError as error:
            print(f"{context} tokens: {error}")
            continue
        found = recipe.exltune
        assert found is not None, "optimize writes it; exllamav3's own recipes are without"
        print(f"{context} tokens: {recipe.achieved_bpw:.3f} bpw by {found.source}, cache {found.cache or 'fp16'}")


if __name__ == "__main__":
    main()
