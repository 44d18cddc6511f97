"""What every group's bits do to the model's output: swaps on the reference, scored end to end."""

from exltune.measure.exhaustive import ExhaustivePlan
from exltune.measure.plan import Batch, ProbePlan
from exltune.measure.probes import probe_batches, probe_name, uniform_mixes, wider_probes
from exltune.measure.summary import QuantHead, QuantSizes, summarize

__all__ = [
    "Batch",
    "ExhaustivePlan",
    "ProbePlan",
    "QuantHead",
    "QuantSizes",
    "probe_batches",
    "probe_name",
    "summarize",
    "uniform_mixes",
    "wider_probes",
]
