"""The plan: what fits, what would, and what limits leave."""
