"""Finished tune directories with made-up scores, around real EXL3 files of the tiny models."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

from exltune.exl3.directory import QuantDir
from exltune.exl3.writer import tensor_storage
from exltune.schema.evaluation import Evaluation, EvaluationRow, Verdict
from exltune.schema.measurement import Measurement, MeasurementDetail, QuantRef
from exltune.schema.provenance import Provenance
from exltune.schema.recipe import Recipe, RecipeDetail
from exltune.schema.search import SearchDetail
from exltune.schema.tokens import DataOptions, DataSource, Texts
from exltune.schema.tune import TuneJob
from exltune.store.records import write_recipe, write_record
from exltune.testing.tiny_models import TinyModel

TOKENS = "7" * 32 + "ab" * 16
MODEL = "5" * 32 + "cd" * 16
#: What the base model's own README says of itself; it may never reach the Hub.
BASE_README = "---\nlicense: apache-2.0\nlanguage: en\n---\n# The base model, 4711 downloads\n"


def make_quant(tiny: TinyModel, path: Path, bits: float, *, choice: str = "2", recipe: Recipe | None = None) -> Path:
    """An EXL3 directory that calls itself so many bits wide, with all that exllamav3's own conversion leaves in it."""
    shutil.copytree(tiny.quants[choice], path)
    config = json.loads((path / "config.json").read_text())
    settings = {
        "quant_method": "exl3",
        "version": "1.6.5",
        "bits": bits,
        "head_bits": 6,
        "calibration": {"rows": 250, "cols": 2048},
        "codebook": "mul1",
    }
    (path / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    storage = settings | {"tensor_storage": tensor_storage(QuantDir(path))}
    (path / "quantization_config.json").write_text(json.dumps(storage))
    (path / "tokenizer.json").write_text('{"version": "1.0"}')
    (path / "README.md").write_text(BASE_README)
    if recipe is not None:
        write_recipe(path / "recipe.yaml", recipe)
    return path


def evaluation_row(name: str, path: Path | None, size_bytes: int, bpw: float, seed: int) -> EvaluationRow:
    """A row with scores drawn by seed."""
    draw = random.Random(seed)
    tops = sorted((draw.uniform(0.01, 0.99) for _ in range(5)), reverse=True)
    return EvaluationRow(
        name=name,
        path=None if path is None else str(path),
        size_bytes=size_bytes,
        bpw=bpw,
        head_bpw=6.14,
        kl_quant_ref=draw.uniform(0.1, 0.6),
        kl_quant_ref_se=draw.uniform(0.001, 0.01),
        kl_ref_quant=draw.uniform(0.1, 0.6),
        kl_ref_quant_se=draw.uniform(0.001, 0.01),
        perplexity=draw.uniform(5, 20),
        **{f"top_{k}": top for k, top in enumerate(tops, start=1)},
        tokens=24384,
    )


def provenance(model: Path, model_sha256: str = MODEL, tokens_sha256: str = TOKENS) -> Provenance:
    """Of made-up results."""
    return Provenance(
        exltune_version="0.1.0",
        engine="reference",
        model_path=str(model),
        model_sha256=model_sha256,
        tokens_sha256=tokens_sha256,
        rows=96,
        row_length=256,
        seed=3,
    )


def make_tune(tiny: TinyModel, out: Path, bits: float = 3.15, seed: int = 1, **changes: str) -> Path:
    """A tune with one base quant, a uniform baseline and a tuned mix. changes: model_sha256, tokens_sha256."""
    made = provenance(tiny.path, **changes)
    detail = RecipeDetail(
        source="search",
        choices={group.id: "2" for group in tiny.inventory.groups},
        size_bytes=3_150_000_000,
        head_choice="2",
        search=SearchDetail(
            outcome="search", searched=True, passes=41.5, options=("--passes", "42"), rounds=(), standings=()
        ),
        provenance=made,
    )
    tensors = {key: 2.0 for group in tiny.inventory.groups for key in group.tensors}
    recipe = Recipe(target_bpw=bits + 0.05, achieved_bpw=bits, head_bits=6, tensors=tensors, exltune=detail)
    base = make_quant(tiny, out / "quants" / "3bpw_H6", 3)
    tuned = make_quant(tiny, out / "model", bits, choice="3", recipe=recipe)
    write_recipe(out / "recipe.yaml", recipe)
    data = DataOptions(
        texts=Texts.FILES, sources=(DataSource(path="/home/somebody/prose.txt"),), rows=256, row_length=256, seed=3
    )
    measured = MeasurementDetail(
        level=3,
        base="3",
        quants={"3": str(base)},
        quant_sha256={"3": "0" * 64},
        head_choice="3",
        head_bits=6,
        codebook="mul1",
        data=data,
        groups=(),
        heads={"3": 6},
        provenance=made,
    )
    ref = QuantRef(dir=str(base), bpw=3.02)
    measurement = Measurement(base=ref, alts=(), groups=(), base_kld=0.2, arch_string="Glm4Moe", exltune=measured)
    write_record(out / "measurement.json", measurement)
    write_record(
        out / "tune.json", TuneJob(model=str(tiny.path), budget=("--target-bpw", f"{bits + 0.05:g}"), level=3, job="x")
    )
    rows = (
        evaluation_row("3bpw_H6", base, 3_000_000_000, 3.02, 7),
        evaluation_row(f"uniform {bits}", None, 3_160_000_000, bits + 0.01, 10 * seed + 1),
        evaluation_row("tuned", tuned, 3_150_000_000, bits, 10 * seed + 2),
    )
    write_record(out / "evaluation.json", Evaluation(rows=rows, provenance=made))
    verdict = Verdict(
        source="search",
        searched=True,
        tuned=rows[2],
        uniform=rows[1],
        difference=0.0123,
        difference_ci95=(0.0101, 0.0145),
        standings=(),
    )
    write_record(out / "verdict.json", verdict)
    return out
