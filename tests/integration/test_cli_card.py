"""`exltune card`: every number from a file beside it, and refusals that name the file."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from card_numbers import unsourced
from command_line import contents, exltune, fail, succeed
from published_tunes import evaluation_row, make_quant, make_tune, provenance

from exltune.schema.evaluation import Evaluation
from exltune.store.records import write_record

NAMED = ("--base-model", "zai-org/GLM-4.7", "--license", "mit")
GPUS = ("--gpus", "24GiB", "--gpus", "2x8GiB")


@pytest.fixture(scope="module")
def tune(tiny_moe, tmp_path_factory):
    return make_tune(tiny_moe, tmp_path_factory.mktemp("tunes") / "low")


@pytest.fixture(scope="module")
def page(tune, tmp_path_factory):
    """The folder of a card, and what the command printed."""
    out = tmp_path_factory.mktemp("page")
    found = succeed("card", tune, "--out", out / "README.md", "--repo-id", "me/glm", "--cache", "5,4", *NAMED, *GPUS)
    return out, found


@pytest.fixture
def copied(tune, tmp_path):
    return Path(shutil.copytree(tune, tmp_path / "tune"))


def cells(text, name):
    """Cells of a table's row by the quant's name."""
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows if re.sub(r"\[|\]\(.*", "", row[0].strip()) == name]


def test_no_number_without_a_source(page):
    out, _ = page
    text = (out / "README.md").read_text()
    assert unsourced(text, out) == []
    assert len(re.findall(r"\d", text)) > 300


@pytest.mark.parametrize("number", ["3.150", "24,384", "0.0123", "41.5", "2.0", "2048"])
def test_a_number_of_no_source_is_found(page, number):
    """The check of the test above: a digit changed in any place is told."""
    out, _ = page
    text = (out / "README.md").read_text()
    changed = number[:-1] + str((int(number[-1]) + 3) % 10)
    wrong = unsourced(text + f"\nNew: {changed}.\n", out)
    assert wrong == [changed]


def test_the_table_is_the_evaluation(page, tune):
    text = (page[0] / "README.md").read_text()
    rows = json.loads((tune / "evaluation.json").read_text())["rows"]
    for name, row in zip(("3bpw_H6", "uniform 3.15", "3.15bpw_H6"), rows, strict=True):
        found = cells(text, name)[0]
        assert found[2:4] == [f"{row['size_bytes'] / 2**30:.2f}", f"{row['size_bytes'] / 1e9:.2f}"]
        assert found[5] == f"{row['bpw']:.3f}"
        assert found[6] == f"{row['kl_quant_ref']:.4f} ± {1.959964 * row['kl_quant_ref_se']:.4f}"
        assert found[7] == f"{row['kl_ref_quant']:.4f} ± {1.959964 * row['kl_ref_quant_se']:.4f}"
        assert found[8] == f"{row['perplexity']:.3f}"
        assert found[9:] == [f"{100 * row[f'top_{k}']:.1f} %" for k in range(1, 6)]


def test_contexts_are_the_planners(page, tune):
    text = (page[0] / "README.md").read_text()
    found = succeed("plan", tune / "model", "--gpus", "2x8GiB", "--cache", "5,4")
    assert cells(text, "3.15bpw_H6")[1][2] == f"{found['max_context']:,}"
    assert f"--gpus 24GiB --context {found['context_limit']} --cache 5,4" in text


def test_front_matter(page):
    text = (page[0] / "README.md").read_text()
    assert yaml.safe_load(text.split("---")[1]) == {
        "license": "mit",
        "base_model": "zai-org/GLM-4.7",
        "base_model_relation": "quantized",
        "quantization": "exl3",
        "library_name": "exllamav3",
        "pipeline_tag": "text-generation",
        "tags": ["exl3", "exllamav3", "exltune", "glm4_moe", "moe"],
    }


def test_what_it_says(page):
    out, found = page
    text = (out / "README.md").read_text()
    assert found["branches"] == ["3bpw_H6", "3.15bpw_H6"]
    assert "hf download me/glm --revision 3.15bpw_H6 --local-dir GLM-4.7-exl3-3.15bpw_H6" in text
    assert "exltune tune model --out low --target-bpw 3.2 --bits 3 --head-bits 6 --codebook mul1 --level l3" in text
    assert "--data prose.txt --rows 256 --row-length 256 --seed 3 --passes 42" in text
    assert "the tuned quant is better" in text
    assert "before you compare perplexities" in text
    for picture in re.findall(r"!\[.*\]\((.*)\)", text):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    assert {"README.md", *found["files"]} == {n for n, kind in contents(out).items() if kind != "directory"}


def test_sources_are_hashed_and_name_no_folder(page, tune):
    out, _ = page
    files = json.loads((out / "card.json").read_text())["files"]
    assert files == {name: contents(out)[name] for name in files}
    assert sorted(files) == [
        "evaluations/3.15bpw_H6.json",
        "measurements/3.15bpw_H6.json",
        "recipes/3.15bpw_H6.yaml",
        "verdicts/3.15bpw_H6.json",
    ]
    for name in (*files, "card.json", "README.md"):
        text = (out / name).read_text()
        assert "/home/somebody" not in text
        assert str(tune.parent) not in text


def test_two_tunes_in_one_card(tiny_moe, tune, tmp_path):
    other = make_tune(tiny_moe, tmp_path / "high", bits=4.25, seed=2)
    found = succeed("card", tune, other, "--out", tmp_path / "page" / "README.md", *NAMED, *GPUS)
    assert sorted(found["branches"]) == ["3.15bpw_H6", "3bpw_H6", "4.25bpw_H6"]
    assert len(list((tmp_path / "page" / "recipes").iterdir())) == 2
    assert unsourced((tmp_path / "page" / "README.md").read_text(), tmp_path / "page") == []


def test_a_directory_with_an_evaluation(tiny_moe, tmp_path):
    quant = make_quant(tiny_moe, tmp_path / "mine", 2.5)
    rows = (evaluation_row("mine", quant, 10**9, 2.51, 5),)
    write_record(tmp_path / "scores.json", Evaluation(rows=rows, provenance=provenance(tiny_moe.path)))
    given = ("--evaluation", tmp_path / "scores.json", "--out", tmp_path / "page" / "README.md", *NAMED)
    assert succeed("card", quant, *given)["branches"] == ["2.5bpw_H6"]
    text = (tmp_path / "page" / "README.md").read_text()
    assert unsourced(text, tmp_path / "page") == []
    assert cells(text, "2.5bpw_H6")[0][1] == "base"


def test_license_and_languages_of_the_base_model(tiny_moe, tune, tmp_path):
    model = Path(shutil.copytree(tiny_moe.path, tmp_path / "models--org--Base" / "snapshots" / "1"))
    (model / "README.md").write_text("---\nlicense: other\nlicense_name: odd\nlanguage: de\n---\ntext\n")
    out = Path(shutil.copytree(tune, tmp_path / "tune"))
    content = (out / "evaluation.json").read_text()
    (out / "evaluation.json").write_text(content.replace(json.dumps(str(tiny_moe.path)), json.dumps(str(model))))
    succeed("card", out, "--out", tmp_path / "page" / "README.md")
    front = yaml.safe_load((tmp_path / "page" / "README.md").read_text().split("---")[1])
    assert (front["license"], front["license_name"], front["language"]) == ("other", "odd", ["de"])
    assert front["base_model"] == "org/Base"


def test_the_plan_that_does_not_fit(tiny_moe, tune, tmp_path):
    succeed("card", tune, "--out", tmp_path / "README.md", *NAMED, "--gpus", "1GiB")
    assert cells((tmp_path / "README.md").read_text(), "3bpw_H6")[1] == ["3bpw_H6", "does not fit"]
    assert "exltune deploy" not in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("name", ["evaluation.json", "verdict.json", "recipe.yaml", "measurement.json", "model"])
def test_a_tune_that_has_not_ended(copied, tmp_path, name):
    path = copied / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    arguments = ("card", copied, "--out", tmp_path / "page.md", *NAMED)
    fail(7, name, "has not ended", "exltune tune", here=tmp_path, arguments=arguments)


def test_numbers_that_are_none(copied, tmp_path):
    verdict = json.loads((copied / "verdict.json").read_text())
    (copied / "verdict.json").write_text(json.dumps(verdict | {"difference": float("nan")}))
    arguments = ("card", copied, "--out", tmp_path / "page.md", *NAMED)
    fail(7, "verdict.json", "difference: NaN and infinity are not numbers", here=tmp_path, arguments=arguments)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [("model_sha256", 6, ("another model",)), ("tokens_sha256", 7, ("held-out tokens differ", "--seed"))],
)
def test_what_cannot_stand_in_one_table(tiny_moe, tune, tmp_path, change, code, words):
    other = make_tune(tiny_moe, tmp_path / "other", bits=4.25, seed=2, **{change: "9" * 64})
    arguments = ("card", tune, other, "--out", tmp_path / "page.md", *NAMED)
    fail(code, "other/evaluation.json", *words, here=tmp_path, arguments=arguments)


def test_two_quants_of_one_name(tiny_moe, tune, tmp_path):
    other = make_tune(tiny_moe, tmp_path / "other", seed=2)
    arguments = ("card", tune, other, "--out", tmp_path / "page.md", *NAMED)
    fail(2, "both branch 3", here=tmp_path, arguments=arguments)


def test_missing_evaluation(tiny_moe, tune, tmp_path):
    quant = make_quant(tiny_moe, tmp_path / "mine", 2.5)
    arguments = ("card", quant, "--out", tmp_path / "page.md", *NAMED)
    fail(7, "no evaluation of these", "give it as --evaluation", here=tmp_path, arguments=arguments)
    arguments = ("card", tune, quant, "--out", tmp_path / "page.md", *NAMED)
    fail(7, "mine", "no evaluation has a row of 2.5bpw_H6", here=tmp_path, arguments=arguments)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--license", "mit"), ("--base-model",)),
        (("--base-model", "zai-org/GLM-4.7"), ("--license",)),
        (("--base-model", "GLM-4.7", "--license", "mit"), ("--base-model", "OWNER")),
        ((*NAMED, "--repo-id", "a//b"), ("--repo-id", "OWNER/NAME")),
        ((*NAMED, "--gpus", "24"), ("--gpus", "unit")),
        ((*NAMED, "--cache", "9,9"), ("9,9",)),
        (("--base-model", "a/b", "--license-link", "x"), ("--license other",)),
    ],
)
def test_options_that_are_missing_or_wrong(tune, tmp_path, options, words):
    fail(2, *words, here=tmp_path, arguments=("card", tune, "--out", tmp_path / "page.md", *options))


def test_an_incomplete_quant(copied, tmp_path):
    (copied / "model" / "quantization_config.json").unlink()
    arguments = ("card", copied, "--out", tmp_path / "page.md", *NAMED)
    fail(6, "quantization_config.json is missing", here=tmp_path, arguments=arguments)


def test_nothing_is_overwritten(tune, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    arguments = ("card", tune, "--out", tmp_path / "README.md", *NAMED)
    fail(8, "README.md", here=tmp_path, arguments=arguments)
    assert exltune(*arguments, "--force").code == 0
    assert "mine" not in (tmp_path / "README.md").read_text()


def test_a_moved_tune_is_known_by_its_names(tune, copied, tmp_path):
    """Paths in the evaluation are stale after a move; names of rows are not."""
    moved = copied.rename(tmp_path / "moved")
    content = (moved / "evaluation.json").read_text().replace(str(tune), "/nowhere")
    (moved / "evaluation.json").write_text(content)
    assert succeed("card", moved, "--out", tmp_path / "README.md", *NAMED)["branches"] == ["3bpw_H6", "3.15bpw_H6"]
