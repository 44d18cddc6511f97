"""exltune finds, proves and builds the best EXL3 quant of a model for a budget."""

__version__ = "0.1.0"
