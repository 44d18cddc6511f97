"""The effect of every group's bits on the model's output: swaps on the reference, scored end to end."""

from exltune.measurement.budget import DEFAULT_SHARE, Budget, parse_budget, plan_for
from exltune.measurement.cost import passes
from exltune.measurement.exhaustive import ExhaustivePlan
from exltune.measurement.few_swaps import FewSwapsPlan
from exltune.measurement.plan import Batch, ProbePlan
from exltune.measurement.probes import probe_batches, probe_name, swap_units, uniform_mixes, wider_probes
from exltune.measurement.reference import QuantReference, quant_reference
from exltune.measurement.saliency import saliencies, tensor_saliency
from exltune.measurement.summary import QuantHead, QuantSizes, summarize
from exltune.measurement.timing import seconds_per_pass

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
    "quant_reference",
    "saliencies",
    "seconds_per_pass",
    "summarize",
    "swap_units",
    "tensor_saliency",
    "uniform_mixes",
    "wider_probes",
]
