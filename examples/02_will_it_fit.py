"""Will it fit? Weights and KV cache of a model on GPUs, planned from its config.json alone.

Usage: python examples/02_will_it_fit.py [MODEL_OR_CONFIG]
"""

import sys

import exltune

SOURCE = sys.argv[1] if len(sys.argv) > 1 else "models/glm4moe/config.json"
#: Hardly any room beside CUDA and buffers: the model is small.
GPUS, CONTEXT = "2x1194.2MiB", 1024


def main() -> None:
    for cache in ("fp16", "8,8", "5,4"):
        plan = exltune.plan(SOURCE, bits=3.15, gpus=GPUS, context=CONTEXT, cache=cache, slots=1)
        most = "-" if plan.max_bpw is None else f"{plan.max_bpw:.2f}"
        print(f"cache {cache}: {'fits' if plan.fits else 'does not fit'} on {GPUS}, at most {most} bpw")
        for remedy in plan.remedies:
            print(f"  it would with: {remedy.change} {remedy.value}")


if __name__ == "__main__":
    main()
