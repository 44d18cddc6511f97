"""Time `exltune tune` on a model of about five million parameters with 100k tokens of the user's own text.

The model is random: only time is measured here, and that does not depend on what the weights know.

    python benchmarks/tune_time.py [--tokens 100000] [--target-bpw 3.5]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

from exltune.corpora import read_texts

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = ROOT / "models" / "glm4moe"


def make_model(out: Path) -> int:
    """Write a random model; its number of parameters."""
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=1024,
        hidden_size=128,
        num_hidden_layers=11,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        moe_intermediate_size=128,
        intermediate_size=384,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        max_position_embeddings=2048,
        initializer_range=0.1,
        dtype="bfloat16",
    )
    model = Qwen3MoeForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(out)
    return sum(parameter.numel() for parameter in model.parameters())


def make_text(out: Path, tokens: int) -> int:
    """Write that many tokens of the bundled texts as one plain file; the number really written."""
    tokenizer = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    written, parts = 0, []
    for document in read_texts(None)[::7]:
        ids = tokenizer.encode(document.text, add_special_tokens=False).ids[: tokens - written]
        parts.append(tokenizer.decode(ids))
        written += len(ids)
        if written >= tokens:
            break
    out.write_text("\n\n".join(parts), encoding="utf-8")
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--target-bpw", default="3.5")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        parameters, tokens = make_model(work / "model"), make_text(work / "own.txt", arguments.tokens)
        exltune = Path(sys.executable).parent / "exltune"
        command = [exltune, "tune", work / "model", "--out", work / "out", "--json", "--data", work / "own.txt"]
        command += ["--target-bpw", arguments.target_bpw]
        start = time.perf_counter()
        subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
        minutes = (time.perf_counter() - start) / 60
    print(f"{parameters:,} parameters, {tokens:,} tokens, {os.cpu_count()} cores: {minutes:.1f} minutes")


if __name__ == "__main__":
    main()
