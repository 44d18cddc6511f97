"""The loop: candidates from all sources, scored, learned from and ranked."""
