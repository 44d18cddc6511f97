"""Golden results of what computes with weights: the codec, engines, metrics, token sets, built directories."""

from __future__ import annotations

from pathlib import Path

import torch

from exltune.assembly import resolve_recipe, splice_model
from exltune.corpora import ModelTokenizer
from exltune.corpora.dealing import token_sets
from exltune.corpora.prompts import Prompt
from exltune.engines.base import Engine
from exltune.engines.reference.engine import ReferenceEngine
from exltune.engines.sampling import LocalSampler, Task
from exltune.engines.streaming.prefix_tree import build_tree, needed_by_leaves
from exltune.exl3.cache_quant import fake_quantize_cache
from exltune.exl3.codebooks import codebook_values
from exltune.exl3.directory import QuantDir
from exltune.exl3.hessian import Hessian
from exltune.exl3.ldlq import ldlq
from exltune.exl3.linear import QuantizedLinear
from exltune.exl3.packing import pack_states, unpack_states
from exltune.exl3.quantizer import quantize_linear
from exltune.metrics import mean_and_se, paired_difference, perplexity
from exltune.metrics.logits import ReferenceLogits
from exltune.quantization import TensorJob, quantize_tensors
from exltune.schema.generate import GenerateOptions
from exltune.schema.mix import CACHE_BITS
from exltune.schema.recipe import Recipe
from exltune.schema.score import Score
from exltune.schema.tokens import DataOptions, DataSource, Split, Texts
from tests.golden.inputs import gaussian, sha256, tiny_mixes, tiny_model, tokens, word_texts, word_tokenizer

#: Widths and codebooks that are encoded; each costs a compilation where numba has none in its cache.
_ENCODED = ((2, "mul1"), (2.5, "mul1"), (3, "mcg"), (4, "3inst"))


def format_(folder: Path) -> object:
    """Codebooks, packing, dequantized weights, and what the cache's widths give back."""
    words = torch.randint(-(1 << 15), 1 << 15, (8, 8, 48), generator=torch.Generator().manual_seed(0)).to(torch.int16)
    states = unpack_states(words.view(64, 48).numpy(), 3)
    signs = gaussian(128).sign().half()
    decoded = {book: QuantizedLinear(words, signs, signs, book, None).dequantize() for book in ("mul1", "mcg", "3inst")}
    return {
        "codebooks": {book: sha256(codebook_values(book)) for book in decoded},
        "states": sha256(states),
        "packed": sha256(pack_states(states, 3)),
        "decoded": {book: _figures(weight) for book, weight in decoded.items()},
        "cache": {str(bits): sha256(fake_quantize_cache(gaussian(16, 64), bits)) for bits in CACHE_BITS},
    }


def codec(folder: Path) -> object:
    """States of plain tiles to the bit, and a linear with a Hessian by its errors."""
    target = gaussian(32, 128, seed=2)
    inputs = gaussian(256, 128, seed=3) * torch.linspace(0.2, 2.0, 128)
    hessian = Hessian(inputs.T @ inputs, len(inputs))
    found = {}
    for bits, book in _ENCODED:
        _, states = ldlq(target, None, bits, book)
        _, stats = quantize_linear(gaussian(128, 128, seed=4), hessian, bits, book, "golden")
        packed = pack_states(states.reshape(-1, states.shape[-1]), bits)
        found[f"{bits:g} {book}"] = {"packed": sha256(packed), "proxy_err": stats.proxy_err, "rfn": stats.rfn}
    return found


def quantize(folder: Path) -> object:
    """Linears of a tiny model, with Hessians of its own inputs."""
    model = tiny_model(folder, "glm4moe")
    engine = ReferenceEngine(model.path, model.quants)
    keys = [model.inventory.groups[number].tensors[0] for number in (0, -1)]
    done = quantize_tensors(engine, tokens(), [TensorJob(key, 2) for key in keys], "mul1")
    return {one.job.key: {"proxy_err": one.stats.proxy_err, "rfn": one.stats.rfn} for one in done}


def capture_reference(folder: Path) -> object:
    """Hessians of every linear, and the tokens of every expert."""
    return _captured(ReferenceEngine(tiny_model(folder, "glm4moe").path, {}))


def score_reference(folder: Path) -> object:
    """Scores of mixes of two tiny models."""
    found = {}
    for name in ("glm4moe", "qwen2"):
        model = tiny_model(folder, name)
        found[name] = _scored(ReferenceEngine(model.path, model.quants), folder, name)
    return found


def score_exllamav3(folder: Path) -> object:
    """The same on exllamav3's modules, run by the stand-in for its extension."""
    return _scored(_exllama(folder), folder, "glm4moe")


def capture_exllamav3(folder: Path) -> object:
    """The same on exllamav3's modules, run by the stand-in for its extension."""
    return _captured(_exllama(folder))


def streaming(folder: Path) -> object:
    """Which states are computed for mixes, and which of them lead to a leaf."""
    model = tiny_model(folder, "glm4moe")
    tree = build_tree(tiny_mixes(model), model.inventory)
    least = needed_by_leaves(tree)
    return {
        "layers": [
            [[edge.parent, *edge.choice.weights, *edge.choice.cache, edge.child] for edge in edges]
            for edges in tree.layers
        ],
        "leaves": [list(leaf) for leaf in tree.leaves],
        "forwards": [tree.layer_forwards, least.layer_forwards],
    }


def metrics(folder: Path) -> object:
    """Logits against others, and statistics over rows."""
    side = ReferenceLogits(gaussian(12, 50, seed=5), torch.arange(12) % 50)
    compared = side.compare(gaussian(12, 50, seed=5) + 0.2 * gaussian(12, 50, seed=6)).stacked()
    scores = [_score(name, row) for name, row in (("a", compared[0]), ("b", compared[1]))]
    return {
        "sums": compared.sum(-1).tolist(),
        "mean": list(mean_and_se(scores[0].kl_ref_mix, 10)),
        "difference": paired_difference(*scores).model_dump(),
        "perplexity": perplexity(scores[0]),
    }


def token_sets_(folder: Path) -> object:
    """All four sets of two files, by content."""
    place = word_tokenizer(folder / "texts")
    sources = tuple(DataSource(path=str(file), domain=file.stem) for file in word_texts(place))
    options = DataOptions(
        texts=Texts.FILES, sources=sources, weights=(("first", 2.0),), rows=32, row_length=32, samples=100, seed=3
    )
    found = token_sets(options, place)
    return {
        "rows": {split.value: DataOptions(rows=256).rows_of(split) for split in Split},
        "sets": {split.value: found[split].info.model_dump(mode="json") for split in Split},
    }


def generate(folder: Path) -> object:
    """Answers of a tiny model: the likeliest tokens, and drawn ones."""
    model = tiny_model(folder, "qwen3moe").path
    tokenizer = ModelTokenizer(word_tokenizer(folder / "words"))
    prompts = [Prompt("a", text="w1 w2 w3"), Prompt("b", text="w9 w8")]
    tasks = [Task((number, 1), prompt) for number, prompt in enumerate(prompts, 1)]
    found = {}
    for temperature in (0.0, 1.0):
        options = GenerateOptions(max_new_tokens=8, temperature=temperature, seed=5)
        parts = LocalSampler(model, tokenizer, options, 2).sample(tasks, ())
        found[f"{temperature:g}"] = [answer.content for part in parts for _, answer in part]
    return found


def build(folder: Path) -> object:
    """A directory spliced from two quants, file by file."""
    model = tiny_model(folder, "glm4moe")
    recipe = Recipe(tensors={"*": 2.0, "*.mlp.*": 3.0})
    out = folder / "built"
    out.mkdir()
    sources = {float(choice): QuantDir(path) for choice, path in model.quants.items()}
    bits = resolve_recipe(recipe, model.inventory)
    splice_model(out, model.inventory, bits, sources, sources[3.0], {"bits": 2.5, "head_bits": 3, "codebook": "mul1"})
    return {file.name: sha256(file.read_bytes()) for file in sorted(out.iterdir())}


def _exllama(folder: Path) -> Engine:
    from tests.standin.devices import exllamav3_devices
    from tests.standin.hook import install

    install()
    from exltune.engines.exllamav3.engine import ExllamaEngine

    model = tiny_model(folder, "glm4moe")
    return ExllamaEngine(model.path, model.quants, devices=exllamav3_devices()[:1])


def _scored(engine: Engine, folder: Path, name: str) -> object:
    scores = engine.score(tiny_mixes(tiny_model(folder, name)), tokens())
    return {
        score.mix: {
            "kl_ref_mix": sum(score.kl_ref_mix),
            "kl_mix_ref": sum(score.kl_mix_ref),
            "nll": sum(score.nll),
            "top_1": sum(score.top_k[0]),
        }
        for score in scores
    }


def _captured(engine: Engine) -> object:
    layers = engine.capture(tokens())
    found: dict[str, object] = {}
    for layer in layers:
        found |= {key: float(hessian.matrix.diagonal().sum()) for key, hessian in layer.hessians.items()}
        found |= {f"{key} tokens": count for key, count in layer.expert_tokens.items()}
    return found


def _score(mix: str, rows: torch.Tensor) -> Score:
    sums = tuple(rows.tolist())
    return Score(mix=mix, positions=10, kl_ref_mix=sums, kl_mix_ref=sums, nll=sums, top_k=())


def _figures(weight: torch.Tensor) -> list[float]:
    return [float(weight.double().norm()), *weight[0, :4].double().tolist()]
