"""A local stand-in of the Hugging Face Hub's HTTP API, as far as pushing a model goes."""
