"""Frozen records: everything that crosses a stage. No torch here."""
