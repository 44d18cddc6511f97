"""The commands, a file each: a file that registers itself here is a command, and nothing else is needed."""
