"""Base quants: every linear at every bit width asked for, from one capture of Hessians."""

from exltune.quantization.check import check_weights
from exltune.quantization.stage import QuantizedTensor, TensorJob, all_jobs, quantize_tensors

__all__ = ["QuantizedTensor", "TensorJob", "all_jobs", "check_weights", "quantize_tensors"]
