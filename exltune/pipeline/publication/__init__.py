"""Cards and the Hub."""
