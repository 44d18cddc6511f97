"""Model directories: base quants from finished tensors, mixes spliced from base quants."""

from exltune.assembly.assemble import assemble_quant
from exltune.assembly.recipes import resolve_recipe
from exltune.assembly.splice import splice_model

__all__ = ["assemble_quant", "resolve_recipe", "splice_model"]
