"""Whether something fits."""

from __future__ import annotations

from typing import Unpack

from exltune.library import arguments
from exltune.library.arguments import PathArgument, optional
from exltune.library.budgets import BudgetArguments, limits_of, unit_of_sizes, use_of
from exltune.pipeline.deployment.plan import PlanOptions
from exltune.pipeline.deployment.plan import plan as run
from exltune.schema.hardware import FP16_CACHE
from exltune.schema.plan import Plan


def plan(
    source: PathArgument,
    *,
    bits: float | None = None,
    head_bits: float | None = None,
    model: PathArgument | None = None,
    readings: PathArgument | None = None,
    **budget: Unpack[BudgetArguments],
) -> Plan:
    """Check the fit of weights, KV cache and overheads on your GPUs. No weights are read where a config is given.

    Args:
        source: Model or EXL3 directory, a recipe (.yaml) or a config (.json).
        bits: A uniform quant (3) or an average bpw (3.15), of a model or a config.
        head_bits: Bits of the output head, 6 if not given.
        model: Model or config that a recipe belongs to.
        readings: File with readings of a real machine.
        **budget: `target_bpw`, `size`, `vram`, `gpus`, `ram`, `context`, `cache`, `chunk`, `slots`, `tensor_parallel`,
            `offload_layers` (BudgetArguments).

    Returns:
        The plan: whether it fits, the binding limit, remedies.

    Raises:
        UsageError: An argument is of a wrong type or value, or contradicts another.
        ModelError: The source cannot be used.
        RecipeError: The recipe cannot be read.

    Example:
        ```python
        plan = exltune.plan("models/glm4moe/config.json", bits=3.15, gpus="2x24GiB", context=1024, cache="5,4")
        print(plan.fits, plan.max_bpw, plan.max_context)
        ```
    """
    arguments.refuse_unknown(budget, BudgetArguments.__optional_keys__, "plan")
    cache = optional(arguments.cache, "cache", budget.get("cache")) or FP16_CACHE
    return run(
        arguments.path("source", source),
        limits_of(budget),
        use_of(budget).model_copy(update={"cache": cache}),
        options=PlanOptions(
            optional(arguments.number, "bits", bits), optional(arguments.number, "head_bits", head_bits)
        ),
        model=optional(arguments.path, "model", model),
        readings=optional(arguments.path, "readings", readings),
        unit=unit_of_sizes(budget),
    )
