"""Where tests run exllamav3: natively on CUDA under `pytest -m gpu`, else on the CPU with the stand-in."""

from __future__ import annotations

import pytest
import torch

from tests.standin.hook import install, native


def exllamav3_devices() -> tuple[torch.device, ...]:
    """All CUDA devices; on the stand-in those that are pretended, or the CPU twice, so that two devices share rows."""
    install()
    if not native() and not torch.cuda.is_available():
        return (torch.device("cpu"), torch.device("cpu"))
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    return tuple(torch.device("cuda", number) for number in range(torch.cuda.device_count()))
