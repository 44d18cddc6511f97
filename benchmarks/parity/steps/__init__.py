"""The steps, one file each: `take(task)` returns what was found, with `ok=False` where it is not as it should be."""
