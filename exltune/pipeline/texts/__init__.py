"""Token sets, and texts that a model writes itself."""
