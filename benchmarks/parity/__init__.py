"""The first run on a GPU, rehearsed: what gpu_parity.py prepares on a plain machine and takes on the box.

`schedule` says which steps there are, in which order and for how long; `kit` makes beforehand what can be made
beforehand; `runner` takes the steps, each in a process of its own (`take`), one file each in `steps/`; `dry` puts the
stand-in for exllamav3's kernels in the card's place.
"""
