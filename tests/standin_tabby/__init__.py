"""A local HTTP server that behaves as TabbyAPI's admin and chat routes do, its traps included."""
