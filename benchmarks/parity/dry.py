"""A run without a card: the stand-in for exllamav3's kernels in its place, on the same path.

It shows that the steps run and write what they shall, and nothing about a card: every figure of it is meaningless.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

#: The name under which results of a dry run are kept.
CARD = "dry run without a card"


def pretend_card() -> None:
    """Let this process find one device, which is the CPU."""
    from tests.standin.hook import install

    install()
    import exllamav3  # noqa: F401 - before transformers' own modules meet the stubbed triton
    from exllamav3.modules.attention_fn import dispatch

    from exltune.engines.exllamav3 import engine

    engine.named_devices = lambda _numbers: (torch.device("cpu"),)
    dispatch.attn_fns.append(_attend_to_pages)
    _answer_for_the_card()


def _attend_to_pages(args: Any) -> torch.Tensor | None:
    """Attention with a paged cache, which exllamav3 has in torch for large heads alone."""
    from exllamav3.modules.attention_fn.torch import _torch_bighead_fallback

    if not args.has_kv_cache():
        return None
    given = (args.q, args.k, args.v, args.k_cache, args.v_cache, args.block_table, args.cache_seqlens)
    return _torch_bighead_fallback(*given, causal=args.causal, softmax_scale=args.sm_scale)


def _answer_for_the_card() -> None:
    """torch.cuda's counters, all of them zero."""
    answers: dict[str, Any] = {
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device=None: None,
        "memory_stats": lambda device=None: defaultdict(int),
        "mem_get_info": lambda device=None: (0, 0),
        "get_device_name": lambda device=None: CARD,
        "get_device_capability": lambda device=None: (9, 0),
        "current_device": lambda: 0,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
