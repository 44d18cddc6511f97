"""SIGKILL in the middle, then the same command again: it finishes, with the same bytes as if nothing had happened."""

import shutil
import signal
import time

import pytest
import yaml
from command_line import contents, exltune, largest_file, run_until_killed, start, succeed
from real_models import LLAMA, write_model

from exltune.store.files import exclusive, locked
from exltune.store.tensors import TensorStore


@pytest.fixture
def recipe(moe_model, tmp_path):
    """A recipe of three bit widths, at whose sources nothing has to be measured."""
    groups = succeed("inspect", moe_model)["groups"][:-1]
    bits = {key: 2 + number % 3 for number, group in enumerate(groups) for key in group["tensors"]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"head_bits": 6, "tensors": bits}))
    return tmp_path / "recipe.yaml"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def kill_after_tensors(number, out, arguments):
    """Start a quantization and kill it as soon as that many tensors are on the disk."""
    process = start(*arguments)
    deadline = time.monotonic() + 240
    while process.poll() is None and len(list(out.glob(".exltune/*/*.safetensors"))) < number:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    return set(out.glob(".exltune/*/*.safetensors"))


def test_quantize_killed_twice_goes_on(moe_model, quants, data, tmp_path):
    out = tmp_path / "quants"
    arguments = ("quantize", moe_model, "--out", out, "--bits", "4", *data)
    # Past the first layer, in the midst of the second.
    done = kill_after_tensors(9, out, arguments)
    assert not (out / "4bpw_H6").exists()
    times = {path: path.stat().st_mtime_ns for path in done}
    # The second time while the directory is being written.
    run_until_killed("exltune.assembly.assemble:write_configs", 1, *arguments)
    assert times == {path: path.stat().st_mtime_ns for path in done}
    assert (out / ".4bpw_H6.partial" / "model.safetensors").is_file()
    assert not (out / "4bpw_H6").exists()
    outcome = exltune(*arguments)
    assert outcome.code == 0
    assert "27 of 27 tensors are done" in outcome.stderr
    assert names(out) == ["4bpw_H6"]
    # Neither the kills nor the other widths made with it change a byte.
    assert contents(out / "4bpw_H6") == contents(quants / "4bpw_H6")


def test_quantize_goes_on_once_there_is_room(moe_model, quants, data, tmp_path):
    out = tmp_path / "quants"
    shutil.copytree(quants, out)
    shutil.rmtree(out / "4bpw_H6")
    arguments = ("quantize", moe_model, "--out", out, "--bits", "2,3,4", *data)
    # The head's tensor is the largest and the last.
    with largest_file(30_000):
        outcome = exltune(*arguments)
    assert (outcome.code, "File too large" in outcome.stderr) == (15, True)
    assert names(out) == [".exltune", "2bpw_H6", "3bpw_H6"]
    outcome = exltune(*arguments)
    assert "26 of 27 tensors are done" in outcome.stderr
    assert contents(out) == contents(quants)


def test_an_interrupt_is_told_and_goes_on(data, tmp_path, monkeypatch):
    model = write_model(tmp_path / "model", "Llama", LLAMA)
    arguments = ("quantize", model, "--out", tmp_path / "quants", "--bits", "4", *data)
    put, stored = TensorStore.put, []

    def interrupted(*args, **kwargs):
        stored.append(args)
        if len(stored) == 4:
            raise KeyboardInterrupt
        put(*args, **kwargs)

    monkeypatch.setattr(TensorStore, "put", interrupted)
    outcome = exltune(*arguments)
    assert (outcome.code, "goes on where it stopped" in outcome.stderr) == (130, True)
    assert "3 of 8 tensors are done" in exltune(*arguments).stderr
    assert names(tmp_path / "quants") == ["4bpw_H6"]


def test_measure(moe_model, quants, measurement, data, tmp_path):
    out = tmp_path / "measurement.json"
    arguments = ("measure", moe_model, "--quants", quants, "--out", out, "--budget", "all", *data)
    run_until_killed("exltune.store.probes:ProbeStore.add", 3, *arguments)
    assert not out.exists()
    # The base quants and the first layer are scored: a batch each.
    outcome = exltune(*arguments)
    assert outcome.code == 0
    assert "18 of 54 mixes are scored" in outcome.stderr
    assert out.read_bytes() == measurement.read_bytes()
    assert names(tmp_path) == ["measurement.json", "scores.db"]


@pytest.mark.parametrize(
    "where", ["exltune.store.database:Database.insert_new", "exltune.store.probes:ProbeStore._score"]
)
def test_measure_killed_while_it_writes(moe_model, quants, measurement, data, tmp_path, where):
    """In the midst of a transaction: all of the batch is there or nothing of it."""
    out = tmp_path / "measurement.json"
    arguments = ("measure", moe_model, "--quants", quants, "--out", out, "--budget", "all", *data)
    # The fourth insertion of the second batch, or the score of its seventh mix.
    run_until_killed(where, 5 + 4 if "insert" in where else 3 + 7, *arguments)
    outcome = exltune(*arguments)
    assert "3 of 54 mixes are scored" in outcome.stderr
    assert out.read_bytes() == measurement.read_bytes()


@pytest.mark.parametrize("where", ["exltune.assembly.assemble:copy_side_files", "pathlib:Path.rename"])
def test_build(quants, recipe, tmp_path, where):
    folder, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    arguments = ("build", recipe, "--quants", quants, "--out")
    run_until_killed(where, 1, *arguments, folder / "mix")
    assert (folder / ".mix.partial" / "model.safetensors").is_file()
    assert not (folder / "mix").exists()
    succeed(*arguments, folder / "mix")
    succeed(*arguments, undisturbed / "mix")
    assert contents(folder) == contents(undisturbed)


def test_build_never_leaves_half_of_what_it_replaces(quants, recipe, tmp_path):
    arguments = ("build", recipe, "--quants", quants, "--out", tmp_path / "out" / "mix")
    succeed(*arguments)
    whole = contents(tmp_path / "out" / "mix")
    # Between the renames: the old one is out of the way, the new one not yet in its place.
    run_until_killed("pathlib:Path.rename", 2, *arguments, "--force")
    assert names(tmp_path / "out") == [".mix.lock", ".mix.old", ".mix.partial"]
    succeed(*arguments)
    assert contents(tmp_path / "out" / "mix") == whole
    assert names(tmp_path / "out") == ["mix"]


def test_two_processes_in_one_output(moe_model, quants, recipe, data, tmp_path):
    out = tmp_path / "out"
    quantize = ("quantize", moe_model, "--out", out, "--bits", "4", *data)
    tune = ("tune", moe_model, "--out", out, "--target-bpw", "3", *data)
    with exclusive(out):
        before = contents(tmp_path)
        for arguments in (quantize, tune):
            outcome = exltune(*arguments)
            assert (outcome.code, "another exltune is at work" in outcome.stderr) == (8, True)
        assert contents(tmp_path) == before
    assert names(tmp_path) == ["out", "recipe.yaml"]
    measure = ("measure", moe_model, "--quants", quants, "--out", out / "m.json", "-l2", *data)
    build = ("build", recipe, "--quants", quants, "--out", out / "mix")
    for arguments, name in ((measure, "m.json"), (build, "mix")):
        with locked(out / name):
            outcome = exltune(*arguments)
            assert (outcome.code, "another exltune is at work" in outcome.stderr) == (8, True)
        succeed(*arguments)
    assert names(out) == ["m.json", "mix", "scores.db"]
