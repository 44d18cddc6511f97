"""Plans and TabbyAPI."""
