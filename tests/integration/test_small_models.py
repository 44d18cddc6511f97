"""The committed small models: transformers loads them, exllamav3's config fields are there, and they are sharp."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from exltune.corpora.sharp import ROW_LENGTH, memorised_documents
from exltune.inventory import load_inventory

MODELS = sorted(path.parent for path in (Path(__file__).parents[2] / "models").glob("*/config.json"))


@pytest.fixture(params=MODELS, ids=lambda path: path.name)
def model_dir(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def test_all_linears_are_multiples_of_128_wide(model_dir: Path) -> None:
    inventory = load_inventory(model_dir)
    quantized = {key for group in (*inventory.groups, inventory.head) for key in group.tensors}
    for linear in inventory.linears:
        if linear.key in quantized:
            assert (linear.padded_in, linear.padded_out) == (linear.in_features, linear.out_features)


def test_the_config_names_the_experts_as_exllamav3_reads_them(model_dir: Path) -> None:
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    field = {"qwen3_moe": "num_experts", "glm4_moe": "n_routed_experts"}.get(config["model_type"])
    if field is not None:
        assert config[field] == 8
        assert config["norm_topk_prob"] is True


def test_the_model_knows_its_text_and_the_tokenizer_its_chat(model_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    chat = [{"role": "user", "content": "Who?"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>\nWho?<|endoftext|>\n<|assistant|>\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    # Training windows seldom cover a document's first tokens.
    rows = [tokenizer(d.text)["input_ids"][ROW_LENGTH : 2 * ROW_LENGTH] for d in memorised_documents()[::6]]
    ids = torch.tensor(rows)
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss.item()
    assert loss < 1.5
