"""Where stages meet: each function runs one command, stores what it yields, and resumes after a kill."""
