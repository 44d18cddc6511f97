"""The pretend cards of tests/standin/pretend refuse what a card refuses, and do what it does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from tests.standin import extension
from tests.standin.hook import install, native
from tests.standin.pretend import can_pretend, cards
from tests.standin.pretend.kernels import on_one_card
from tests.standin.pretend.memory import tensor_at

pytestmark = pytest.mark.skipif(native() or not can_pretend(), reason="this torch knows CUDA, or is not 2.13")
install()

ZERO, ONE = torch.device("cuda", 0), torch.device("cuda", 1)


@pytest.fixture(autouse=True)
def two_cards() -> Iterator[None]:
    with cards(2):
        yield


def on(device: torch.device | str) -> Tensor:
    return torch.arange(6.0).view(2, 3).to(device)


MIXED: list[tuple[str, Callable[[Tensor, Tensor], object]]] = [
    ("sum", lambda a, b: a + b),
    ("in place", lambda a, b: a.add_(b)),
    ("product", lambda a, b: a @ b.T),
    ("concatenation", lambda a, b: torch.cat([a, b])),
    ("choice", lambda a, b: torch.where(a > 2, a, b)),
    ("rows", lambda a, b: a.index_select(0, b[0, :1].long())),
    ("linear", lambda a, b: torch.nn.functional.linear(a, b)),
    ("values at indices", lambda a, b: a.__setitem__(torch.tensor([0, 1]), b)),
]


@pytest.mark.parametrize(("first", "second"), [("cpu", ZERO), (ZERO, "cpu"), (ZERO, ONE)])
@pytest.mark.parametrize("act", [act for _, act in MIXED], ids=[name for name, _ in MIXED])
def test_tensors_of_two_devices_are_refused(
    act: Callable[[Tensor, Tensor], object], first: torch.device | str, second: torch.device | str
) -> None:
    for grad in (torch.no_grad(), torch.inference_mode()):
        with grad, pytest.raises(RuntimeError, match=r"same device|cannot write to"):
            act(on(first), on(second))


def test_indices_may_lie_in_main_memory_but_not_on_another_card() -> None:
    table = on(ZERO)
    assert table[torch.tensor([1])].tolist() == [[3.0, 4.0, 5.0]]
    for other, index in ((table, torch.tensor([1]).to(ONE)), (on("cpu"), torch.tensor([1]).to(ZERO))):
        with pytest.raises(RuntimeError, match="indices should be either on cpu or on the same device"):
            other[index]


def test_single_numbers_go_with_any_card() -> None:
    assert (on(ONE) * torch.tensor(2.0)).sum().item() == 30.0
    with pytest.raises(RuntimeError, match="same device"):
        on(ONE) * torch.tensor(2.0).to(ZERO)


def test_a_card_copies_where_a_cpu_does_not() -> None:
    card = on(ZERO)
    there, here = card.to(ZERO), card.cpu()
    assert there is card
    here.zero_()
    assert card.sum().item() == 15.0
    assert card.to(ZERO, copy=True) is not card
    assert (card.device, card.is_cuda, here.is_cuda) == (ZERO, True, False)


def test_views_share_memory() -> None:
    buffer = torch.zeros(4, 3, device=ONE)
    buffer[1:3].copy_(on("cpu"))
    buffer.view(-1)[0] = 7
    buffer[:, 2].add_(1)
    assert buffer.tolist() == [[7, 0, 1], [0, 1, 3], [3, 4, 6], [0, 0, 1]]


def test_main_memory_is_not_seen_without_a_copy() -> None:
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        on(ZERO).numpy()
    with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator but found 'cpu'"):
        torch.empty(3, device=ZERO).uniform_(generator=torch.Generator())


def test_every_thread_makes_tensors_on_its_own_card() -> None:
    made: list[torch.device] = []

    def work() -> None:
        with torch.cuda.device(1):
            made.append(torch.full((2,), 3, device="cuda").device)
        made.append(torch.tensor([1], device="cuda").device)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert made == [ONE, ZERO]
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.cuda.set_device(2)


def test_a_kernel_reaches_one_card_alone() -> None:
    halves = [torch.ones(2, 128, dtype=torch.half, device=device) for device in (ZERO, ONE, "cpu")]
    extension.had_r_128(halves[0], out := torch.empty_like(halves[0]), None, None, 1.0)
    assert out[0, 0].item() == pytest.approx(128**0.5, rel=1e-3)
    with pytest.raises(RuntimeError, match=r"two devices, cuda:0 and cuda:1! .*exllamav3_ext\.hgemm"):
        extension.hgemm(halves[0], halves[1], halves[0])
    with pytest.raises(RuntimeError, match=r"two devices, cuda:0 and cpu!"):
        extension.hgemm(halves[0], halves[2], halves[0])
    with pytest.raises(RuntimeError, match=r"exllamav3_ext\.hgemm: tensors in main memory"):
        extension.hgemm(halves[2], halves[2], halves[2])


def test_memory_that_was_given_back_is_not_read() -> None:
    card = on(ZERO)
    address = card.data_ptr()
    read = on_one_card("read", lambda _where, at, size: tensor_at(at, (size,), torch.float))
    assert read(on(ZERO), address + 4, 2).tolist() == [1.0, 2.0]
    with pytest.raises(RuntimeError, match="another card"):
        read(on(ONE), address, 2)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        read(on(ZERO), address, 7)
    del card
    with pytest.raises(RuntimeError, match="illegal memory access"):
        read(on(ZERO), address, 2)
