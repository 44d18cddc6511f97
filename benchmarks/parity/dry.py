"""A run without a card: the stand-in for exllamav3's kernels in its place, on the same path.

It shows that the steps run and write what they shall, and nothing about a card: every figure of it is meaningless.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

from parity.runner import DRY_CARD


def pretend_card() -> None:
    """Let this process find one device, which is the CPU."""
    from tests.standin.hook import install

    install()
    import exllamav3  # noqa: F401 - before transformers' own modules meet the stubbed triton

    from exltune.engines.exllamav3 import engine

    engine.named_devices = lambda _numbers: (torch.device("cpu"),)
    _answer_for_the_card()


def _answer_for_the_card() -> None:
    """torch.cuda's counters, all of them zero."""
    answers: dict[str, Any] = {
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device=None: None,
        "memory_stats": lambda device=None: defaultdict(int),
        "mem_get_info": lambda device=None: (0, 0),
        "get_device_name": lambda device=None: DRY_CARD,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
