"""Pretend CUDA devices: tensors that lie in main memory, say that they are on cuda:0 or cuda:1, and obey CUDA's rules.

`cards(count)` puts them into this process for a while: torch.cuda answers as if there were so many cards, factories
with `device="cuda:N"` make pretend tensors in any thread, and what a card refuses is refused: an operation on tensors
of two devices, `.numpy()` of a card's tensor, a generator of another device, a kernel of exllamav3's extension that is
given a tensor in main memory. exllamav3 takes the paths that it takes on a card: its loader of weights, bundled
projections and the fused MLPs of experts, all of which write to or read from addresses (memory.py). What takes a real
card stays replaced: triton kernels, the graphs behind cached attention, batched experts of more than 256 rows.

Not pretended: that copies and kernels run later than they are asked for, how much memory there is, and a kernel that
is launched while another card is the current one.
"""

from tests.standin.pretend.install import can_pretend, cards

__all__ = ["can_pretend", "cards"]
