"""Files that survive a kill: atomic files and directories, finished tensors, finished probes."""
