"""What golden results are computed from: fixed weights, tokens, texts and laws."""

from __future__ import annotations

import hashlib
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "tests"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


from exltune.schema.mix import CACHE_K, CACHE_V, REFERENCE, Mix  # noqa: E402
from exltune.testing.tiny_models import CONFIGS, TinyModel, make_tiny_model  # noqa: E402

FIXTURES = ROOT / "tests" / "fixtures" / "configs"


def sha256(*parts: object) -> str:
    """sha256 (hex) of arrays, tensors, bytes, or anything that JSON holds."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            digest.update(part.contiguous().numpy().tobytes())
        elif isinstance(part, np.ndarray):
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            digest.update(part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode())
    return digest.hexdigest()


def config(name: str) -> dict[str, Any]:
    """The config.json of a published model."""
    return dict(json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8")))


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    """Gaussian values on a grid of 1/256: equal in fp32 on every machine."""
    values = np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(np.round(values * 256) / 256).float()


def tokens(rows: int = 3, length: int = 24, vocab: int = 256) -> torch.Tensor:
    """Token ids (rows, length)."""
    return torch.from_numpy(np.random.default_rng(1).integers(0, vocab, (rows, length)))


@cache
def tiny_model(folder: Path, name: str) -> TinyModel:
    """One of the tiny random models, with its heads of the time when results were noted; made once in a folder."""
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return make_tiny_model(folder / f"tiny-{name}", CONFIGS[name] | heads)


def tiny_mixes(model: TinyModel) -> list[Mix]:
    """The reference, both quants, two mixes of them, and one with a quantized cache."""
    ids = [group.id for group in (*model.inventory.groups, model.inventory.head)]
    alternating = {id_: ("2", "3", REFERENCE)[number % 3] for number, id_ in enumerate(ids)}
    late = {id_: REFERENCE if number < len(ids) // 2 else "2" for number, id_ in enumerate(ids)}
    return [
        Mix(name="reference", choices=dict.fromkeys(ids, REFERENCE)),
        Mix(name="2", choices=dict.fromkeys(ids, "2")),
        Mix(name="3", choices=dict.fromkeys(ids, "3")),
        Mix(name="alternating", choices=alternating),
        Mix(name="late", choices=late),
        Mix(name="cache", choices=alternating | {CACHE_K: "4", CACHE_V: "3"}),
    ]


def word_tokenizer(folder: Path, words: int = 256) -> Path:
    """A directory with a tokenizer of one token a word: w0, w1, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def word_texts(folder: Path, words: int = 256) -> list[Path]:
    """Two files of paragraphs in these words."""
    files = []
    for seed, name in enumerate(("first", "second")):
        rng = np.random.default_rng(seed)
        paragraphs = [" ".join(f"w{i}" for i in rng.integers(0, words, 40)) for _ in range(120)]
        files.append(folder / f"{name}.txt")
        files[-1].write_text("\n\n".join(paragraphs), encoding="utf-8")
    return files
