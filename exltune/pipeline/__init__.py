"""Where stages meet: each function runs one command, stores its results, and resumes after a kill."""
