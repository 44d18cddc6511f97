"""Distortion of Gaussian tiles by codebook and bits, NMSE * 4^bits, at the best of a grid of scales.

Prints the rms at which each width does best, which exltune/exl3/scale.py starts its search from.

    python benchmarks/distortion.py [--tiles 256] [--codebooks mul1 mcg 3inst]
"""

from __future__ import annotations

import argparse

import numpy as np
import numpy.typing as npt

from exltune.exl3.codebooks import CODEBOOKS, HALF_BITS, INTEGER_BITS, Codebook
from exltune.exl3.trellis import decode_states, encode_tiles

SCALES = np.arange(0.70, 1.46, 0.05)


def nmse(tiles: npt.NDArray[np.float32], scale: float, bits: float, codebook: Codebook) -> float:
    """Mean squared error of tiles (n, 256) of unit variance, quantized at a scale."""
    scaled = tiles * np.float32(scale)
    found = decode_states(encode_tiles(scaled, bits, codebook), codebook)
    return float(np.mean((found - scaled) ** 2)) / scale**2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=256)
    parser.add_argument("--codebooks", nargs="+", default=list(CODEBOOKS), choices=CODEBOOKS)
    arguments = parser.parse_args()
    tiles = np.random.default_rng(1).standard_normal((arguments.tiles, 256)).astype(np.float32)
    print(f"{'codebook':>8} {'bits':>5} {'best rms':>9} {'NMSE*4^bits':>12}")
    for codebook in arguments.codebooks:
        for bits in sorted((*INTEGER_BITS, *(HALF_BITS if codebook == "mul1" else ()))):
            errors = [nmse(tiles, float(scale), bits, codebook) * 4**bits for scale in SCALES]
            print(f"{codebook:>8} {bits:>5g} {SCALES[int(np.argmin(errors))]:>9.2f} {min(errors):>12.4f}", flush=True)


if __name__ == "__main__":
    main()
