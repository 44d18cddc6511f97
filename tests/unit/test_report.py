"""Numbers, page and pictures of `exltune report`."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from command_line import exltune, fail, largest_file, succeed
from scipy import stats
from synthetic_measurement import synthetic_measurement

from exltune.inventory import inventory_from_config
from exltune.report.measurement.numbers import interval, report_of
from exltune.report.measurement.page import report_page
from exltune.report.measurement.pictures import PICTURES
from exltune.report.measurement.scales import law_curve, rows_of
from exltune.schema.evaluation import MethodRow
from exltune.schema.measurement import MeasuredGroup, Measurement, Probe
from exltune.schema.recipe import Recipe, RecipeDetail
from exltune.schema.report import Report
from exltune.schema.search import SearchDetail, Standing
from exltune.search.law.costs import nmse
from exltune.store.records import write_recipe

CONFIGS = Path(__file__).resolve().parents[1] / "fixtures" / "configs"
WIDTHS = (2.0, 3.0, 4.0, 6.0)
SCRIPT = "</script><script>alert(1)</script>"


@pytest.fixture(scope="module")
def big() -> Measurement:
    """A measurement of GLM-4.7: 92 layers, 638 groups."""
    config = json.loads((CONFIGS / "glm-4.7.json").read_text(encoding="utf-8"))
    return synthetic_measurement(inventory_from_config(config), WIDTHS, (6.0, 6.0, 6.0, 8.0))


@pytest.fixture
def small(big: Measurement) -> Measurement:
    """Its layers 2 (dense) and 3 (experts) alone."""
    return _with(big, groups=tuple(group for group in big.exltune.groups if group.layer in (2, 3)), mixes=())


def _with(measurement: Measurement, **changes: Any) -> Measurement:
    return measurement.model_copy(update={"exltune": measurement.exltune.model_copy(update=changes)})


def _exact(measurement: Measurement, exponent: float, gamma: float) -> Measurement:
    """Swaps that follow S * r^p without noise, and uniform mixes that are their sum by gamma."""

    def law(group: MeasuredGroup, number: int) -> MeasuredGroup:
        probes = tuple(
            probe.model_copy(
                update={
                    "kld_nats": 0.01 * (number + 1) * float(nmse(probe.bits)) ** (exponent / 2),
                    "kld_se_nats": 1e-6,
                }
            )
            for probe in group.probes
        )
        return group.model_copy(update={"probes": probes})

    groups = tuple(law(group, number) for number, group in enumerate(measurement.exltune.groups))
    mixes = []
    for place, width in enumerate(WIDTHS):
        parts = np.array([group.probes[place].kld_nats for group in groups])
        kld = float(np.sum(parts ** (1 / gamma)) ** gamma)
        mixes.append(
            MethodRow(name=f"uniform@{width:g}", size_bytes=1, bpw=width, kl_ref_quant=kld, kl_ref_quant_se=1e-6)
        )
    return _with(measurement, groups=groups, mixes=tuple(mixes), wider=())


def _report(measurement: Measurement) -> Report:
    return report_of(measurement, Path("m.json"), None)


def _data(page: str) -> dict[str, Any]:
    """What the page's figures are drawn from."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    content = json.loads(found[1])
    assert isinstance(content, dict)
    return content


def _write(folder: Path, measurement: Measurement) -> Path:
    (folder / "m.json").write_text(measurement.model_dump_json(), encoding="utf-8")
    return folder / "m.json"


def _first_probe(measurement: Measurement, **changes: Any) -> Measurement:
    """With another first probe of the first group."""
    first, *rest = measurement.exltune.groups
    probes = (first.probes[0].model_copy(update=changes), *first.probes[1:])
    return _with(measurement, groups=(first.model_copy(update={"probes": probes}), *rest))


def test_without_plotly_the_extra_is_named(small: Measurement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    arguments = ("report", _write(tmp_path, small), "--out", tmp_path / "report.html")
    fail(2, "pip install 'exltune[report]'", here=tmp_path, arguments=arguments)
    assert not (tmp_path / "report.html").exists()


def test_the_laws_of_exact_swaps_are_found(small: Measurement) -> None:
    report = _report(_exact(small, exponent=1.6, gamma=0.7))
    assert all(law.exponent == pytest.approx(1.6) for law in report.laws)
    assert all(law.log_error < 0.01 for law in report.laws)
    for number, group in enumerate(report.groups):
        assert group.scale == pytest.approx(0.01 * (number + 1), rel=1e-3)
    for role in {group.role for group in report.groups}:
        same = [group for group in report.groups if group.role == role]
        for error, kld in law_curve(same).items():
            assert kld == pytest.approx(np.median([group.scale or 0.0 for group in same]) * error**1.6, rel=1e-3)


def test_parts_against_whole_mixes(small: Measurement) -> None:
    report = _report(_exact(small, exponent=1.6, gamma=0.7))
    assert report.gamma == pytest.approx(0.7, abs=0.1)
    for mix, place in zip(report.mixes, range(len(WIDTHS)), strict=True):
        parts = [group.probes[place].kld_nats for group in report.groups]
        assert mix.source == "uniform"
        assert mix.parts_by_law == 0
        assert mix.sum_of_parts == pytest.approx(sum(parts))
        assert mix.sum_of_parts > mix.measured_kld
        assert mix.by_gamma == pytest.approx(sum(part ** (1 / report.gamma) for part in parts) ** report.gamma)
        assert mix.by_law == pytest.approx(mix.measured_kld, rel=0.1)


def test_the_default_head_is_a_part_of_uniform_mixes(small: Measurement) -> None:
    exact = _exact(small, exponent=1.6, gamma=0.7)
    head = next(unit for unit in small.exltune.wider if unit.role == "head")
    taken = next(probe for probe in head.probes if probe.choice == small.exltune.head_choice)
    without, with_head = _report(exact), _report(_with(exact, wider=(head,)))
    for one, other in zip(without.mixes, with_head.mixes, strict=True):
        assert other.sum_of_parts == pytest.approx(one.sum_of_parts + taken.kld_nats)


def test_a_part_without_a_probe_is_taken_from_the_law(small: Measurement) -> None:
    exact = _exact(small, exponent=1.6, gamma=0.7)
    first, *rest = exact.exltune.groups
    sparse = _with(exact, groups=(first.model_copy(update={"probes": first.probes[:1]}), *rest))
    for one, other in zip(_report(exact).mixes, _report(sparse).mixes, strict=True):
        assert other.parts_by_law == (other.name != "uniform@2")
        assert other.sum_of_parts == pytest.approx(one.sum_of_parts, rel=1e-3)


def _recipe(measurement: Measurement, **provenance: Any) -> Recipe:
    """What a search over the measurement would record: one mix scored at 3 bits, one not scored."""
    members = [member for group in measurement.exltune.groups for member in group.members]
    choices = dict.fromkeys(members, "3") | {"head": measurement.exltune.head_choice}
    lower = choices | {members[0]: "2"}
    standings = (
        Standing(name="law", choices=lower, size_bytes=1, bpw=3.0, search_kld=0.1, search_kld_se=0.01),
        Standing(name="unscored", choices=choices, size_bytes=1, bpw=3.0),
    )
    return Recipe(
        tensors={},
        exltune=RecipeDetail(
            source="law",
            choices=choices,
            size_bytes=1,
            head_choice=measurement.exltune.head_choice,
            search=SearchDetail(outcome="law", searched=True, passes=1.0, rounds=(), standings=standings),
            provenance=measurement.exltune.provenance.model_copy(update=provenance),
        ),
    )


def test_mixes_that_a_search_scored(small: Measurement) -> None:
    report = report_of(small, Path("m.json"), _recipe(small))
    (mix,) = report.mixes
    assert (mix.name, mix.source, mix.measured_kld, mix.measured_kld_se) == ("law", "search", 0.1, 0.01)
    head = next(unit for unit in small.exltune.wider if unit.role == "head")
    taken = next(probe for probe in head.probes if probe.choice == small.exltune.head_choice)
    first, *rest = small.exltune.groups
    parts = [first.probes[0], *(group.probes[1] for group in rest), taken]
    assert mix.sum_of_parts == pytest.approx(sum(probe.kld_nats for probe in parts))


def test_recipes_without_mixes_to_show(small: Measurement) -> None:
    foreign, elsewhere = Recipe(tensors={}), _recipe(small, tokens_sha256="other")
    for recipe, words in ((foreign, "records no scored mixes"), (elsewhere, "other tokens")):
        report = report_of(small, Path("m.json"), recipe)
        assert report.mixes == ()
        assert any(words in note for note in report.notes)


def test_a_recipe_of_another_model(small: Measurement, tmp_path: Path) -> None:
    file = _write(tmp_path, small)
    write_recipe(tmp_path / "r.yaml", _recipe(small, model_sha256="other"))
    arguments = ("report", file, "--recipe", tmp_path / "r.yaml", "--out", tmp_path / "out.html")
    fail(6, "r.yaml", "another model", here=tmp_path, arguments=arguments)


def test_intervals_are_students_over_rows() -> None:
    rows = np.random.default_rng(0).exponential(size=12)
    se = float(rows.std(ddof=1) / np.sqrt(rows.size))
    probe = Probe(
        choice="2",
        bits=2,
        size_bytes=1,
        kld_nats=float(rows.mean()),
        kld_se_nats=se,
        kld_rows=tuple(rows.tolist()),
    )
    expected = stats.t.interval(0.95, rows.size - 1, loc=rows.mean(), scale=se)
    assert interval(probe) == pytest.approx(expected)
    unrecorded = probe.model_copy(update={"kld_rows": ()})
    assert interval(unrecorded) == pytest.approx(stats.norm.interval(0.95, loc=rows.mean(), scale=se))
    assert interval(probe.model_copy(update={"kld_se_nats": float("nan")})) is None
    wide = interval(probe.model_copy(update={"kld_se_nats": 10.0}))
    assert wide is not None
    assert wide[0] == 0.0


def test_kl_per_mib_saved_is_against_fp16(small: Measurement) -> None:
    report = _report(_first_probe(small, kld_nats=0.5, size_bytes=1 << 20))
    group = report.groups[0]
    assert group.probes[0].kld_per_mib == pytest.approx(0.5 / (2 * group.numel / (1 << 20) - 1))
    assert all(probe.kld_per_mib is None for unit in report.wider if unit.role != "head" for probe in unit.probes)
    assert all(probe.kld_per_mib is None for one in _report(_with(small, base="2")).groups for probe in one.probes)


@pytest.mark.parametrize("model", ["big", "small"])
def test_the_heat_map_has_every_group_at_every_width(model: str, request: pytest.FixtureRequest) -> None:
    measurement: Measurement = request.getfixturevalue(model)
    report = _report(measurement)
    charts = _data(report_page(report))["charts"]
    klds = {(g.layer, g.role, p.choice): p.kld_nats for g in measurement.exltune.groups for p in g.probes}
    seen = {}
    for trace in charts["heat_map"]["figure"]["data"]:
        for role, line in zip(trace["y"], trace["z"], strict=True):
            for layer, value in zip(trace["x"], line, strict=True):
                if value is not None:
                    seen[int(layer), role, trace["meta"]["choice"]] = 10**value
    assert seen == pytest.approx(klds, rel=1e-3)
    visible = [trace["visible"] for trace in charts["heat_map"]["figure"]["data"]]
    assert visible == [True, False, False, False]


def test_hover_says_group_kl_interval_and_bytes(small: Measurement) -> None:
    content = _data(report_page(_report(_first_probe(small, size_bytes=12345))))
    trace = content["charts"]["heat_map"]["figure"]["data"][0]
    number = trace["customdata"][trace["y"].index("attn.q")][trace["x"].index("2")]
    probe = small.exltune.groups[0].probes[0]
    low, high = interval(probe) or (0.0, 0.0)
    expected = (
        "2.attn.q at 2 bits",
        f"KL(ref‖mix) {probe.kld_nats:.3g} nats",
        f"{low:.3g} to {high:.3g}",
        "12,345 bytes",
    )
    assert all(words in content["hovers"][number] for words in expected)


def test_estimated_swaps_are_hollow(small: Measurement) -> None:
    report = _report(_first_probe(small, estimated=True))
    assert any("1 swaps were not scored but estimated" in note for note in report.notes)
    page = report_page(report)
    content = _data(page)
    trace = content["charts"]["heat_map"]["figure"]["data"][0]
    row, column = trace["y"].index("attn.q"), trace["x"].index("2")
    assert trace["text"][row][column].startswith("~")
    points = next(one for one in content["charts"]["intervals"]["figure"]["data"] if one["name"] == "attn.q")
    hollow = [
        number
        for number, symbol in zip(points["customdata"], points["marker"]["symbol"], strict=True)
        if "open" in symbol
    ]
    assert hollow == [trace["customdata"][row][column]]
    assert f"<td>~{report.groups[0].probes[0].kld_nats:.3g}</td>" in page


def test_a_page_of_hundreds_of_groups_is_below_six_megabytes(big: Measurement) -> None:
    page = report_page(_report(big))
    assert len(page.encode("utf-8")) < 6_000_000
    assert len(big.exltune.groups) > 600


def test_a_strangers_names_stay_text(small: Measurement) -> None:
    first, *rest = small.exltune.groups
    evil = first.model_copy(update={"id": f"2.{SCRIPT}", "role": SCRIPT})
    detail = {"groups": (evil, *rest), "codebook": SCRIPT, "quants": {"2": SCRIPT}, "quant_sha256": {"2": SCRIPT}}
    provenance = small.exltune.provenance.model_copy(update={"model_path": SCRIPT, "engine": SCRIPT})
    named = _with(small, **detail, provenance=provenance).model_copy(update={"arch_string": SCRIPT})
    page = report_page(report_of(named, Path(f"{SCRIPT}.json"), None))
    assert "<script>alert" not in page
    content = _data(page)
    texts = [text for trace in content["charts"]["heat_map"]["figure"]["data"] for text in trace["y"]]
    assert "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;" in texts
    assert not any("<" in text for text in (*texts, *content["hovers"]))


@pytest.mark.parametrize("kld", [0.0, -1e-9])
def test_swaps_of_no_kl_lie_at_the_edge(small: Measurement, kld: float) -> None:
    report = _report(_first_probe(small, kld_nats=kld, kld_se_nats=0.0))
    assert any("1 swaps have a KL(ref‖mix) of zero or below" in note for note in report.notes)
    positive = min(probe.kld_nats for g in report.groups for probe in g.probes if probe.kld_nats > 0)
    trace = _data(report_page(report))["charts"]["heat_map"]["figure"]["data"][0]
    edge = trace["z"][trace["y"].index("attn.q")][trace["x"].index("2")]
    assert 10**edge < positive
    assert PICTURES["kl_intervals.png"](report) is not None


def test_nothing_but_zeros(small: Measurement) -> None:
    def nothing(group: MeasuredGroup) -> MeasuredGroup:
        flat = {"kld_nats": 0.0, "kld_se_nats": 0.0}
        return group.model_copy(update={"probes": tuple(probe.model_copy(update=flat) for probe in group.probes)})

    groups, wider = map(tuple, (map(nothing, small.exltune.groups), map(nothing, small.exltune.wider)))
    report = _report(_with(small, groups=groups, wider=wider))
    assert "heat_map" in _data(report_page(report))["charts"]
    assert PICTURES["kl_heat_map.png"](report) is not None


def test_one_layer_and_parts_of_layers(small: Measurement) -> None:
    one = tuple(group for group in small.exltune.groups if group.layer == 3)
    names = {group.role: group.role.split(".")[0] for group in one}
    parts = tuple(
        group.model_copy(update={"id": f"3.{part}", "role": part, "members": (f"3.{part}.a", f"3.{part}.b")})
        for part, group in {names[group.role]: group for group in one}.items()
    )
    report = _report(_with(small, groups=parts, level=2))
    assert rows_of(report.groups) == ["attn", "shared", "experts"]
    content = _data(report_page(report))
    assert content["charts"]["heat_map"]["figure"]["data"][0]["x"] == ["3"]
    assert PICTURES["kl_error_law.png"](report) is not None


def test_tensors_of_one_role_have_rows_of_their_own(small: Measurement) -> None:
    kv = next(group for group in small.exltune.groups if group.role == "attn.kv")
    pair = tuple(kv.model_copy(update={"id": f"2.attn.{name}", "members": (f"2.attn.{name}",)}) for name in "kv")
    assert rows_of(_report(_with(small, groups=pair)).groups) == ["attn.k", "attn.v"]


def test_swaps_on_a_base_quant_have_no_gamma(small: Measurement) -> None:
    based = _with(small, base="2").model_copy(update={"base_kld": 0.25})
    report = _report(based)
    assert report.gamma is None
    assert any("base quant 2" in note and "0.25" in note for note in report.notes)
    page = report_page(report)
    assert "Everything else is the base quant 2" in page
    assert "the unquantized model" not in page.split("</p>")[0]


@pytest.mark.parametrize("name", sorted(PICTURES))
def test_pictures_show_something(small: Measurement, name: str) -> None:
    report = _report(_exact(small, 1.6, 0.7)).model_copy(update={"wider": _report(small).wider})
    picture = matplotlib.image.imread(io.BytesIO(PICTURES[name](report) or b""))[..., :3]
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


def test_the_command_writes_page_and_pictures(small: Measurement, tmp_path: Path) -> None:
    file, out = _write(tmp_path, small), tmp_path / "new" / "report.html"
    found = succeed("report", file, "--out", out, "--png", tmp_path / "pictures")
    assert found["report"] == str(out)
    assert found["report_bytes"] == out.stat().st_size
    assert {Path(path).name for path in found["pictures"]} == set(PICTURES) - {"kl_additivity.png"}
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in found["pictures"])
    assert Report.model_validate(found["content"]) == _report(small).model_copy(update={"measurement": str(file)})
    again = exltune("report", file, "--out", out, "--force")
    assert (again.code, again.stdout) == (0, f"{out}\n")
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]


def test_bad_input(small: Measurement, tmp_path: Path) -> None:
    file, out = _write(tmp_path, small), tmp_path / "out.html"
    text = file.read_text(encoding="utf-8")
    (tmp_path / "half.json").write_text(text[: len(text) // 2], encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text("target_bpw: 3\ntensors: {}\n", encoding="utf-8")
    theirs = json.loads(text)
    del theirs["exltune"]
    (tmp_path / "theirs.json").write_text(json.dumps(theirs), encoding="utf-8")
    (tmp_path / "there.html").write_text("mine", encoding="utf-8")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "kl_wider.png").write_bytes(b"mine")
    cases: tuple[tuple[tuple[object, ...], int, tuple[str, ...]], ...] = (
        ((tmp_path / "none.json", "--out", out), 7, ("none.json", "cannot be read")),
        ((tmp_path / "half.json", "--out", out), 7, ("half.json", "not a valid measurement")),
        ((tmp_path / "recipe.yaml", "--out", out), 7, ("recipe.yaml", "not a valid measurement")),
        ((tmp_path / "theirs.json", "--out", out), 7, ("theirs.json", "exltune", "Field required")),
        ((file, "--out", tmp_path / "there.html"), 8, ("there.html", "--force")),
        ((file, "--out", tmp_path), 8, ("directory",)),
        ((file, "--out", out, "--png", tmp_path / "pictures"), 8, ("kl_wider.png", "--force")),
        ((file, "--out", out, "--png", file), 8, ("m.json", "folder")),
        ((file, "--out", out, "--recipe", tmp_path / "none.yaml"), 5, ("none.yaml",)),
    )
    for arguments, code, words in cases:
        fail(code, *words, here=tmp_path, arguments=("report", *arguments))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kld_nats": float("nan")}, ("exltune.groups.0.probes.0.kld_nats", "NaN and infinity are not numbers")),
        (None, ("no probes",)),
    ],
)
def test_measurements_without_numbers(
    small: Measurement, tmp_path: Path, changes: dict[str, float] | None, words: tuple[str, ...]
) -> None:
    bad = _with(small, groups=()) if changes is None else _first_probe(small, kld_nats=12345.0)
    text = bad.model_dump_json().replace("12345.0", "NaN")
    (tmp_path / "m.json").write_text(text, encoding="utf-8")
    arguments = ("report", tmp_path / "m.json", "--out", tmp_path / "out.html")
    fail(7, "m.json", *words, here=tmp_path, arguments=arguments)


def test_a_full_disk_leaves_nothing(small: Measurement, tmp_path: Path) -> None:
    file = _write(tmp_path, small)
    with largest_file(1_000_000):
        fail(15, here=tmp_path, arguments=("report", file, "--out", tmp_path / "report.html"))
