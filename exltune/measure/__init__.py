"""What every group's bits do to the model's output: swaps on the reference, scored end to end."""

from exltune.measure.cost import passes
from exltune.measure.exhaustive import ExhaustivePlan
from exltune.measure.few_swaps import FewSwapsPlan
from exltune.measure.plan import Batch, ProbePlan
from exltune.measure.probes import probe_batches, probe_name, swap_units, uniform_mixes, wider_probes
from exltune.measure.summary import QuantHead, QuantSizes, summarize

__all__ = [
    "Batch",
    "ExhaustivePlan",
    "FewSwapsPlan",
    "ProbePlan",
    "QuantHead",
    "QuantSizes",
    "passes",
    "probe_batches",
    "probe_name",
    "summarize",
    "swap_units",
    "uniform_mixes",
    "wider_probes",
]
