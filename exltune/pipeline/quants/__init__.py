"""Base quants and mixed models: made, found and checked."""
