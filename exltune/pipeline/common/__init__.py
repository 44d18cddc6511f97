"""Shared by the subjects: the session, the reporter, the provenance of results."""
