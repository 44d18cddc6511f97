"""Runs exllamav3's own Python on a CPU, for tests and benchmarks: a stand-in for its CUDA extension.

`tests.standin.hook.install()` is the one bootstrap. It makes `import exllamav3` work in this process; a child
process gets the same hook by having `child_pythonpath()` first in its PYTHONPATH (tests/standin/site/ holds a
sitecustomize that calls it). The extension's functions are restated here in torch and numpy from the CUDA
sources of exllamav3 1.6.5, independently of exltune.exl3, so that they can serve as its oracle; only
`quantize_tiles` calls exltune's encoder. tests/standin/pretend/ makes cards of main memory, for what a CPU forgives
and CUDA does not.
"""
