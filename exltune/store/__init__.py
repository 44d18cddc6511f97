"""What survives a kill: atomic files and directories, finished tensors, finished probes."""
