"""One device with one exllamav3 model, of which a layer at a time is in memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from exltune.engines.exllamav3.chunks import Chunks
from exltune.engines.exllamav3.runtime import import_exllamav3
from exltune.engines.exllamav3.shelf import GroupChoice, Shelf, Stored
from exltune.errors import NonFiniteError
from exltune.exl3.hessian import Hessian
from exltune.schema.inventory import Inventory
from exltune.schema.mix import REFERENCE, CacheChoice, Choice

#: How a linear's weights are stored, as EXL3 or unquantized.
_STORED_AS = ("trellis", "suh", "svh", "su", "sv", "mcg", "mul1", "weight")

_DEVICE_LOCKS: defaultdict[str, Lock] = defaultdict(Lock)


class Worker:
    """Runs modules of the reference, unquantized or a quant, with any mix of stored tensors in the place of its own.

    A module is loaded by exllamav3 itself, from tensors given to it as its converter gives them: the code that runs is
    the code that would run if the mix lay in a directory, fused kernels and all. Norms and routers are the reference's.
    Source: exllamav3 1.6.5, conversion/convert_model.py main ("Reload module from memory"), loader/safetensors.py
    set_new_tensors.
    """

    def __init__(self, device: torch.device, model_dir: Path, inventory: Inventory) -> None:
        exllamav3 = import_exllamav3()
        self.device, self.inventory = device, inventory
        self._config = exllamav3.Config.from_directory(str(model_dir))
        self.model = exllamav3.Model.from_config(self._config)
        modules: Sequence[Any] = self.model.modules
        blocks = [place for place, module in enumerate(modules) if module.layer_idx is not None]
        self._before, self.layers = modules[: blocks[0]], modules[blocks[0] : blocks[-1] + 1]
        self._after, self.head = modules[blocks[-1] + 1 : -1], modules[-1]
        self.chunks = Chunks(device)
        self.bytes_: int | None = None
        self._held: dict[GroupChoice, Stored] = {}

    def start(self, bytes_: int | None) -> None:
        """A new score call, with as many bytes of the device."""
        self.bytes_, self.chunks = bytes_, Chunks(self.device)

    @property
    def peak_bytes(self) -> int:
        """The most memory that torch ever took of the device in this process; 0 on a CPU."""
        return torch.cuda.max_memory_reserved(self.device) if self.device.type == "cuda" else 0

    def current(self) -> AbstractContextManager[object]:
        """The device is the thread's current one meanwhile, for kernels that ask for it instead of their tensors'."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    @torch.inference_mode()
    def embed(self, ids: Tensor) -> Iterator[Tensor]:
        """(rows, T) ids -> the first layer's inputs (1, T, hidden), row by row, in main memory."""
        with self._loaded(self._before):
            for row in ids.split(1):
                params: dict[str, Any] = {}
                yield self._through(self._before, row, params).cpu()

    @contextmanager
    def loaded(self, module: Any, tensors: Stored) -> Iterator[None]:
        """A module with these tensors, and the rest from the reference's files."""
        collection = self._config.stc
        from_disk = not tensors and module.can_defer_load()
        if from_disk:
            # Blocks of 128 MiB that many tensors share would outlive the module, up to eight of them, and one kept
            # weight would hold a whole layer.
            collection.begin_deferred_load(arena=False)
        collection.set_new_tensors(tensors)
        hidden = self._hide(tensors)
        try:
            try:
                module.load(self._home(module))
                if from_disk:
                    collection.end_deferred_load()
            finally:
                collection.tensor_file_map.update(hidden)
                collection.set_new_tensors(None)
                if collection.deferred_mode:
                    collection.abort_deferred_load()
            _unbundle(module)
            yield
        finally:
            # Also where the device was full before all of it was loaded.
            module.unload()
            collection.close()

    def hold(self, tensors: Mapping[GroupChoice, Stored], *, placed: bool = True) -> None:
        """Keep a layer's stored tensors, instead of those of the layer before.

        placed: on the device; else `loaded` brings them there each time.
        """
        place = self._placed if placed else _as_it_is
        self._held = {pair: {n: place(t) for n, t in stored.items()} for pair, stored in tensors.items()}

    def hold_reference(self, module: Any, groups: Iterable[str], shelf: Shelf) -> None:
        """Keep the loaded module's own weights of groups, for mixes that leave them unquantized beside others."""
        linears = {part.key: part for part in module}
        for group in groups:
            self._held[group, REFERENCE] = {
                name: tensor
                for key in shelf.groups[group].tensors
                for name, tensor in self._own_tensors(linears[key]).items()
            }

    def tensors_of(self, pairs: Iterable[GroupChoice]) -> Stored:
        """The arguments of `loaded` for a mix of held groups."""
        return {name: tensor for pair in pairs for name, tensor in self._held.get(pair, {}).items()}

    def check_finite(self, module: Any) -> None:
        """Raises: NonFiniteError naming the first of the module's own weights that fp16 cannot hold."""
        for part in module:
            weight = getattr(getattr(part, "inner", None), "weight", None)
            if weight is not None and not torch.isfinite(weight).all():
                raise NonFiniteError(
                    f"{part.key}.weight holds NaN, inf or values beyond fp16",
                    where=str(self._config.directory),
                    fix="Download the model again",
                )

    @torch.inference_mode()
    def forward(self, layer: int, hidden: Tensor, ids: Tensor, cache: CacheChoice = (REFERENCE, REFERENCE)) -> Tensor:
        """(n, T, hidden) through the loaded layer, with the model's own routing; ids (n, T) are the rows' tokens."""
        params: dict[str, Any] = (
            {} if cache == (REFERENCE, REFERENCE) else {"sim_kvq": tuple(int(bits) for bits in cache)}
        )
        return self._layer_forward(layer, hidden, ids, params)

    @torch.inference_mode()
    def capture(self, layer: int, hidden: Tensor, ids: Tensor, sums: dict[str, dict[str, Any]]) -> None:
        """Add the inputs (n, T, hidden) of the loaded layer's linears to exllamav3's sums; experts see all of them."""
        self._layer_forward(layer, hidden, ids, {"capture": sums, "activate_all_experts": True})

    @torch.inference_mode()
    def capture_head(self, normed: Tensor, sums: dict[str, dict[str, Any]]) -> None:
        """The same for the loaded head; normed is (1, n, hidden)."""
        self._module_forward(self.head, normed, {"capture": sums})

    @staticmethod
    def hessian(sums: Mapping[str, Any], width: int) -> Hessian:
        """exllamav3's sums, on the CPU, without padding."""
        hessian_packed = import_module("exllamav3.modules.quant.exl3_lib.hessian_packed")
        matrix: Tensor = hessian_packed.unpack(sums["H"].cpu(), sums["n"])
        return Hessian(matrix[:width, :width].clone(), int(sums["count"]))

    def _layer_forward(self, layer: int, hidden: Tensor, ids: Tensor, params: dict[str, Any]) -> Tensor:
        params |= {"attn_mode": "flash_attn_nc", "input_ids": ids}
        self.model.prepare_inputs(ids, params)
        # exllamav3 works in place, and on a CPU the rows would be those that other mixes still need.
        return self._module_forward(self.layers[layer], hidden.to(self.device, copy=True), params)

    @contextmanager
    def norms(self) -> Iterator[None]:
        """The modules between the last layer and the head are loaded meanwhile."""
        with self._loaded(self._after):
            yield

    @torch.inference_mode()
    def normed(self, hidden: Tensor) -> Tensor:
        """(n, hidden) -> the head's inputs (1, n, hidden) on the device."""
        return self._through(self._after, hidden.to(self.device, copy=True)[None], {})

    @torch.inference_mode()
    def logits(self, normed: Tensor, choice: Choice) -> Tensor:
        """(1, n, hidden) -> (n, vocab) fp32, with the head's held tensors of a choice."""
        with self.loaded(self.head, self.tensors_of([(self.inventory.head.id, choice)])):
            found = self._module_forward(self.head, normed, {}, torch.float)
        return found[0, :, : self.inventory.vocab_size]

    @contextmanager
    def weight_of(self, key: str, tensors: Stored) -> Iterator[Tensor]:
        """A linear's weight (in, out) of the padded shape, with stored tensors in the place of its own."""
        linear = self.model.find_module(key)
        with torch.inference_mode(), self.loaded(linear, {n: self._placed(t) for n, t in tensors.items()}):
            yield linear.inner.get_weight_tensor()

    def _module_forward(
        self, module: Any, hidden: Tensor, params: dict[str, Any], out_dtype: torch.dtype | None = None
    ) -> Tensor:
        arguments = {} if out_dtype is None else {"out_dtype": out_dtype}
        # exllamav3 keeps one set of static buffers for each device.
        with _DEVICE_LOCKS[str(module.device)]:
            found: Tensor = module.forward(module.prepare_for_device(hidden, params), params, **arguments)
        return found

    def _through(self, modules: Sequence[Any], hidden: Tensor, params: dict[str, Any]) -> Tensor:
        for module in modules:
            hidden = self._module_forward(module, hidden, params)
        return hidden

    @contextmanager
    def _loaded(self, modules: Sequence[Any]) -> Iterator[None]:
        for module in modules:
            module.load(self._home(module))
        try:
            yield
        finally:
            for module in modules:
                module.unload()
            self._config.stc.close()

    def _hide(self, tensors: Stored) -> dict[str, Any]:
        """Take the reference's own storage of these linears off exllamav3's map: a quant's marks of another codebook,
        or its trellis, would go before the given ones.
        """
        stored = self._config.stc.tensor_file_map
        keys = {name.rpartition(".")[0] for name in tensors}
        names = [f"{key}.{kind}" for key in keys for kind in _STORED_AS]
        return {name: stored.pop(name) for name in names if name in stored}

    def _home(self, module: Any) -> torch.device:
        return torch.device("cpu") if module.caps.get("prefer_cpu") else self.device

    def _placed(self, tensor: Tensor) -> Tensor:
        """On the device; markers of one number are looked at on the CPU alone."""
        return tensor if tensor.numel() == 1 else tensor.to(self.device)

    def _own_tensors(self, linear: Any) -> Stored:
        """A linear's weights as `loaded` takes them without a copy; nothing where loading them changes them."""
        stored = self._config.stc.tensor_file_map
        scaled = any(f"{linear.key}.{name}" in stored for name in ("scale", "weight_scale", "weight_scale_inv"))
        if scaled or linear.weight_scale != 1.0:
            return {}
        if linear.quant_type == "exl3":
            own: Stored = linear.inner.get_tensors(linear.key)
            return own
        found = {f"{linear.key}.weight": linear.inner.weight.T}
        if linear.inner.bias is not None:
            found[f"{linear.key}.bias"] = linear.inner.bias
        return found


def _unbundle(module: Any) -> None:
    """Let projections of a padded width run alone: for the one kernel in which exllamav3 runs two of them on few
    tokens, such a width has no tiles.

    Source: exllamav3 1.6.5, modules/attn.py project_qkv, exllamav3_ext/quant/exl3_kernel_map.cu exl3_gemm_shape_compat.
    """
    for part in module:
        for name in ("multi_kv", "multi_qg"):
            bundle = getattr(part, name, None)
            if bundle is not None and any(one.out_features != one.out_features_unpadded for one in bundle.linears):
                setattr(part, name, None)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
