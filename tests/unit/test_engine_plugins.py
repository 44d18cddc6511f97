"""Engines of other distributions: found by entry point, imported when chosen, refused with a reason."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_distributions import install

from exltune.engines import Resources, engine_names, open_engine
from exltune.engines.base import runs_on_cpu
from exltune.errors import UsageError

_ENGINE = """
class FakeEngine:
    name = "fake"
    needs_gpu = False

    def __init__(self, model_dir, quants, **settings):
        self.model_dir, self.quants, self.settings = model_dir, quants, settings

    score = add_quants = rows_at_once = capture = quantize = rfn = lambda self: None

class GpuEngine(FakeEngine):
    needs_gpu = True

class Poor:
    needs_gpu = True
    score = rows_at_once = quantize = rfn = lambda self: None

def function(model_dir, quants):
    pass
"""
Give = Callable[..., None]


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Give:
    """Install a distribution with engines; its modules are not imported yet."""
    (tmp_path / "fake_engines.py").write_text(_ENGINE)
    (tmp_path / "half_installed.py").write_text("import no_such_package_of_ours\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fake_engines", raising=False)

    def give(name: str = "exltune-fake", **rows: str) -> None:
        install(monkeypatch, tmp_path / name, name, "exltune.engines", rows)

    return give


def test_it_is_listed_without_being_imported(give: Give) -> None:
    assert engine_names() == ("auto", "reference", "exllamav3")
    give(fake="fake_engines:FakeEngine", broken="half_installed:Engine")
    assert engine_names() == ("auto", "reference", "exllamav3", "broken", "fake")
    assert "fake_engines" not in sys.modules


def test_it_is_opened_with_what_it_may_take(give: Give, tmp_path: Path) -> None:
    give(fake="fake_engines:FakeEngine", gpu="fake_engines:GpuEngine")
    engine = open_engine("fake", str(tmp_path), {"2": tmp_path / "2"}, Resources(state_bytes=5))
    assert (engine.model_dir, engine.quants, engine.settings) == (tmp_path, {"2": tmp_path / "2"}, {"state_bytes": 5})
    with pytest.raises(UsageError, match="engine fake runs on the CPU"):
        open_engine("fake", tmp_path, resources=Resources(devices=(1,)))
    assert open_engine("gpu", tmp_path, resources=Resources(devices=(1,))).settings == {"devices": (1,)}
    assert (runs_on_cpu("fake"), runs_on_cpu("gpu")) == (True, False)


def test_our_own_say_whether_they_need_a_gpu() -> None:
    assert (runs_on_cpu("reference"), runs_on_cpu("exllamav3")) == (True, False)


def test_an_unknown_name_is_told_with_all_there_are(give: Give, tmp_path: Path) -> None:
    give(fake="fake_engines:FakeEngine")
    with pytest.raises(UsageError, match=r"no engine 'warp'\. Choose one of: auto, reference, exllamav3, fake"):
        open_engine("warp", tmp_path)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("half_installed:Engine", "cannot be imported .*no_such_package_of_ours"),
        ("fake_engines:NoEngine", "cannot be imported .*NoEngine"),
        ("not a module", "cannot be imported"),
        ("fake_engines:function", "is not a class"),
        ("fake_engines", "is not a class"),
        ("fake_engines:Poor", "its class has no add_quants, capture"),
    ],
)
def test_what_is_not_an_engine_is_refused(give: Give, tmp_path: Path, target: str, reason: str) -> None:
    give(bad=target)
    with pytest.raises(UsageError, match=f"the engine 'bad' .*{reason}") as error:
        open_engine("bad", tmp_path)
    assert error.value.where == f"entry point {target} of exltune-fake 1.5"
    assert "auto, reference, exllamav3" in str(error.value)


@pytest.mark.parametrize("name", ["fake", "reference"])
def test_two_of_one_name_are_refused(give: Give, tmp_path: Path, name: str) -> None:
    give("exltune-first", **{name: "fake_engines:FakeEngine"})
    give("exltune-second", **{name: "fake_engines:FakeEngine"})
    assert engine_names().count(name) == 1
    with pytest.raises(UsageError, match=r"given by .*exltune-(first|second) 1\.5.*Uninstall all but one"):
        open_engine(name, tmp_path)
