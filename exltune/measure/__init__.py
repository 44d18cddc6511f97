"""What every group's bits do to the model's output: swaps on the reference, scored end to end."""

from exltune.measure.budget import DEFAULT_SHARE, Budget, parse_budget, plan_for
from exltune.measure.cost import passes
from exltune.measure.exhaustive import ExhaustivePlan
from exltune.measure.few_swaps import FewSwapsPlan
from exltune.measure.plan import Batch, ProbePlan
from exltune.measure.probes import probe_batches, probe_name, swap_units, uniform_mixes, wider_probes
from exltune.measure.reference import QuantReference
from exltune.measure.saliency import tensor_saliency
from exltune.measure.summary import QuantHead, QuantSizes, summarize

__all__ = [
    "DEFAULT_SHARE",
    "Batch",
    "Budget",
    "ExhaustivePlan",
    "FewSwapsPlan",
    "ProbePlan",
    "QuantHead",
    "QuantReference",
    "QuantSizes",
    "parse_budget",
    "passes",
    "plan_for",
    "probe_batches",
    "probe_name",
    "summarize",
    "swap_units",
    "tensor_saliency",
    "uniform_mixes",
    "wider_probes",
]
