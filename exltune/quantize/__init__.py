"""Base quants: every linear at every bit width asked for, from one capture of Hessians."""

from exltune.quantize.check import check_weights
from exltune.quantize.stage import QuantizedTensor, TensorJob, all_jobs, quantize_tensors

__all__ = ["QuantizedTensor", "TensorJob", "all_jobs", "check_weights", "quantize_tensors"]
