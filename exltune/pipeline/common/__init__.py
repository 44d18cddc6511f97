"""What several subjects share: the session, the reporter, where results come from."""
