"""Tiles/s on one core, by codebook and bits: exltune's numba encoder against the same recurrence in C with AVX2.

    python benchmarks/encoder.py [--seconds 1.0] [--codebooks mul1,mcg,3inst] [--json FILE]

Both take the same Gaussian tiles in this run, in turns, and count their thread's CPU time; the best of the turns
stands. The C build (benchmarks/encoder.c) needs gcc and an x86 CPU with AVX2; without it only numba is timed.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import thread_time

import numpy as np
import numpy.typing as npt

from exltune.exl3.codebooks import CODEBOOKS, HALF_BITS, INTEGER_BITS, Codebook, check_bits, codebook_values
from exltune.exl3.viterbi import make_encoder

TARGET = 1.5
TURNS = 3
C_LANES = 8
FLAGS = ("-O3", "-march=native", "-ffast-math", "-fno-finite-math-only", "-shared", "-fPIC")

Floats = npt.NDArray[np.float32]
States = npt.NDArray[np.uint16]
Encode = Callable[[Floats, States], None]


def main() -> None:
    """Print the table, and write it where --json says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="CPU time for each encoder and width")
    parser.add_argument("--codebooks", default=",".join(CODEBOOKS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder))
        rows = [
            measure(library, codebook, bits, options.seconds)
            for codebook in options.codebooks.split(",")
            for bits in sorted((*INTEGER_BITS, *HALF_BITS))
            if bits in INTEGER_BITS or codebook == "mul1"
        ]
    slowest = max((row["ratio"] for row in rows if row["ratio"]), default=None)
    if slowest is not None:
        verdict = "within" if slowest <= TARGET else "above"
        print(f"C is at most {slowest:.2f}x as fast: {verdict} the target of {TARGET}x")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def build(folder: Path) -> ctypes.CDLL | None:
    """The C encoder, compiled into a folder; None without gcc or AVX2."""
    compiler, source = shutil.which("gcc"), Path(__file__).with_name("encoder.c")
    if compiler is None or "avx2" not in Path("/proc/cpuinfo").read_text():
        print("no gcc or no AVX2: numba alone")
        return None
    out = folder / "encoder.so"
    subprocess.run([compiler, *FLAGS, str(source), "-o", str(out), "-lm"], check=True)
    return ctypes.CDLL(str(out))


def measure(library: ctypes.CDLL | None, codebook: Codebook, bits: float, seconds: float) -> dict[str, object]:
    """One line of the table. Both encoders must reach the same error, to float32 rounding."""
    check_bits(bits, codebook)
    even, odd = int(bits), int(bits) + (bits != int(bits))
    # In the codebook's own spread: how far a path is from its best does not change the work.
    tiles = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    encoders = {"numba": numba_encoder(codebook, even, odd)}
    if library is not None:
        encoders["c"] = c_encoder(library, codebook, even, odd)
    errors, rates = {}, dict.fromkeys(encoders, 0.0)
    for name, encode in encoders.items():
        states = np.empty((4, 256), dtype=np.uint16)
        encode(tiles[:4], states)  # compiles
        errors[name] = float(np.mean((codebook_values(codebook)[states] - tiles[:4]) ** 2))
    for _ in range(TURNS):
        for name, encode in encoders.items():
            rates[name] = max(rates[name], tiles_per_second(encode, tiles, seconds / TURNS))
    assert max(errors.values()) <= min(errors.values()) * (1 + 1e-4), errors
    ratio = rates["c"] / rates["numba"] if "c" in rates else None
    compared = f"C {rates['c']:7.0f}   C/numba {ratio:.2f}" if ratio is not None else ""
    print(f"{codebook:6s} {bits:4g} bits: numba {rates['numba']:7.0f} tiles/s   {compared}", flush=True)
    return {"codebook": codebook, "bits": bits, **rates, "ratio": ratio}


def tiles_per_second(encode: Encode, tiles: Floats, seconds: float) -> float:
    """By this thread's CPU time: other work on the machine does not count."""
    states, done, batch = np.empty(tiles.shape, dtype=np.uint16), 0, 8
    start = thread_time()
    while thread_time() - start < seconds:
        at = done % (len(tiles) - batch + 1)
        encode(tiles[at : at + batch], states[at : at + batch])
        done += batch
    return done / (thread_time() - start)


def numba_encoder(codebook: Codebook, even: int, odd: int) -> Encode:
    """exltune's kernel on the calling thread, as `encode_tiles` gives it to each core."""
    from exltune.exl3.trellis import arrange_values

    encoder, table = make_encoder(even, odd), codebook_values(codebook)
    at_even, at_odd = arrange_values(codebook, even, odd), arrange_values(codebook, odd, even)
    rows = np.empty((258, 65536 >> even), dtype=np.float32)
    return lambda tiles, states: encoder(tiles, at_even, at_odd, table, rows, states)


def c_encoder(library: ctypes.CDLL, codebook: Codebook, even: int, odd: int) -> Encode:
    """The C kernel on the calling thread."""
    function = getattr(library, f"encode_{even}_{odd}")
    pointer = np.ctypeslib.ndpointer(np.float32, flags="C")
    function.argtypes = [
        pointer, ctypes.c_long, pointer, pointer, pointer, pointer, np.ctypeslib.ndpointer(np.uint16, flags="C"),
    ]  # fmt: skip
    function.restype = None
    table = np.ascontiguousarray(codebook_values(codebook))
    at_even, at_odd = arrange_for_c(table, even, odd), arrange_for_c(table, odd, even)
    rows = np.empty((258, 65536 >> even), dtype=np.float32)
    return lambda tiles, states: function(tiles, len(tiles), at_even, at_odd, table, rows, states)


def arrange_for_c(table: Floats, bits_in: int, bits_out: int) -> Floats:
    """(j, k, a) where j is shorter than a vector, else (k, a, j)."""
    values = table.reshape(1 << bits_out, 1 << (16 - bits_in - bits_out), 1 << bits_in)
    return np.ascontiguousarray(values.transpose(2, 0, 1) if values.shape[2] < C_LANES else values)


if __name__ == "__main__":
    main()
