"""A question to the planner: a model, a use and limits; and the deciding numbers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from exltune.budget.memory.cache import PAGE_TOKENS
from exltune.budget.memory.profile import ModelProfile
from exltune.budget.memory.weights import Weights
from exltune.budget.placement.demand import Workload, workload
from exltune.budget.plan.limits import Limits, checks
from exltune.errors import UsageError
from exltune.schema.hardware import Hardware, Overheads, SizeUnit, Use
from exltune.schema.plan import Limit

#: Where a config has no limit: no context is longer.
_LONGEST = 1 << 24


@dataclass(frozen=True)
class Question:
    """The use of a model. weights: a given quant; None for the largest that fits.

    disk_bytes: of a directory that is there; None counts the tensors that one would have.
    unit: of the sizes in texts.
    """

    profile: ModelProfile
    limits: Limits
    use: Use
    weights: Weights | None = None
    head_bits: float = 6.0
    overheads: Overheads = field(default_factory=Overheads)
    disk_bytes: int | None = None
    unit: SizeUnit = "GiB"

    @property
    def work(self) -> Workload:
        """The model in use."""
        return workload(self.profile, self.use, self.overheads)

    def with_use(self, **changes: object) -> Question:
        """The same, used otherwise."""
        return replace(self, use=self.use.model_copy(update=changes))

    def with_hardware(self, **changes: object) -> Question:
        """The same on other hardware."""
        hardware = Hardware(**(self.limits.hardware.model_dump() | changes))
        return replace(self, limits=replace(self.limits, hardware=hardware))


def check_use(profile: ModelProfile, limits: Limits, use: Use) -> None:
    """Check limits and use against each other and against the model. Raises: UsageError naming the field."""
    _check_positive("`context`", use.context)
    _check_positive("`chunk`", use.chunk)
    _check_positive("`slots`", use.slots)
    _check_positive("`target_bpw`", limits.target_bpw)
    limit = profile.context_limit
    if use.context is not None and limit is not None and use.context > limit:
        raise UsageError(
            f"`context` {use.context} is above the model's limit of {limit} tokens (max_position_embeddings)",
            fix=f"Give at most {limit}",
        )
    if use.tensor_parallel and len(limits.hardware.gpus) < 2:
        raise UsageError("`tensor_parallel` needs two GPUs or more", fix="Give them, as in `gpus` 2x24GiB")
    _check_offload(profile, use)


def broken_limits(work: Workload, limits: Limits, weights: Weights) -> tuple[Limit, ...]:
    """The limits that these weights break."""
    return tuple(name for name, passes in checks(work, limits).items() if not passes(weights))


def fits(question: Question) -> bool:
    """Whether the question's weights break no limit."""
    assert question.weights is not None
    return not broken_limits(question.work, question.limits, question.weights)


def largest_context(question: Question) -> int | None:
    """The most tokens, in whole pages or the model's limit, that leave the weights room; None without a limit."""
    hardware = question.limits.hardware
    limit = question.profile.context_limit
    if not hardware.gpus and hardware.vram_bytes is None:
        return limit
    top = -(-(limit or _LONGEST) // PAGE_TOKENS)
    low, high = 0, top
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _on_cards(question, middle * PAGE_TOKENS) else (low, middle - 1)
    if low == top:
        return limit
    return low * PAGE_TOKENS


def _on_cards(question: Question, context: int) -> bool:
    only = Limits(Hardware(gpus=question.limits.hardware.gpus, vram_bytes=question.limits.hardware.vram_bytes))
    return fits(replace(question.with_use(context=context), limits=only))


def _check_positive(field: str, value: float | None) -> None:
    if value is not None and not 0 < value < float("inf"):
        raise UsageError(f"{field} {value:g} is not above 0", fix="Give a positive number")


def _check_offload(profile: ModelProfile, use: Use) -> None:
    if use.offload_layers < 0:
        raise UsageError(f"`offload_layers` {use.offload_layers} is negative", fix="Give a number from 0 on")
    sparse = sum(bool(layer.experts) for layer in profile.layers)
    if use.offload_layers > sparse:
        raise UsageError(
            f"`offload_layers` {use.offload_layers} is above the {sparse} layers with routed experts",
            fix=f"Give at most {sparse}",
        )
    if use.offload_layers and use.tensor_parallel:
        raise UsageError("exllamav3 does not offload experts under tensor parallelism", fix="Give one of the two")
    if use.offload_layers and profile.sizes.codebook != "mul1":
        raise UsageError(f"exllamav3 offloads only mul1 experts, not {profile.sizes.codebook}", fix="Offload no layers")
