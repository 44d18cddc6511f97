"""The plan: the fit, the remedies, and the room within limits."""
