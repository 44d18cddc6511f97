"""A measurement on a local Ray cluster of two workers: the same bytes, whoever is killed."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from command_line import exltune, fail, run_until_killed

KILL_WORKER = Path(__file__).parents[1] / "kill_ray_worker.py"


@pytest.fixture
def ray_folder(monkeypatch):
    """A folder of short name where the cluster's files go, so that its processes can be told."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    monkeypatch.setenv("RAY_TMPDIR", folder)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def processes(folder):
    """Command lines of processes that mention the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes()
        except OSError:
            continue
        if folder.encode() in words and entry.parent.name != str(os.getpid()):
            found.append(words)
    return found


def wait_until_gone(folder):
    deadline = time.monotonic() + 60
    while processes(folder):
        assert time.monotonic() < deadline, processes(folder)
        time.sleep(0.2)


def test_a_killed_worker_changes_no_byte(moe_model, quants, measurement, data, tmp_path, ray_folder):
    out = tmp_path / "measurement.json"
    arguments = (
        "measure",
        moe_model,
        "--quants",
        quants,
        "--out",
        out,
        "--budget",
        "all",
        *data,
        "--ray",
        "auto",
        "--ray-cpus",
        1,
    )
    command = [sys.executable, str(KILL_WORKER), "2", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("A worker was lost") == 1
    assert "its mixes run again" in done.stderr
    assert out.read_bytes() == measurement.read_bytes()
    wait_until_gone(ray_folder)


def test_a_killed_driver_leaves_no_cluster_and_goes_on(moe_model, quants, measurement, data, tmp_path, ray_folder):
    out = tmp_path / "measurement.json"
    arguments = ("measure", moe_model, "--quants", quants, "--out", out, "--budget", "all", *data)
    run_until_killed("exltune.store.probes:ProbeStore.add", 3, *arguments, "--ray", "auto")
    wait_until_gone(ray_folder)
    outcome = exltune(*arguments)
    assert re.search(r"[1-9]\d* of 54 mixes are scored", outcome.stderr)
    assert out.read_bytes() == measurement.read_bytes()


def test_without_ray(moe_model, quants, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    arguments = ("measure", moe_model, "--quants", quants, "--out", tmp_path / "m.json", *data)
    fail(2, "pip install 'exltune[ray]'", here=tmp_path, arguments=(*arguments, "--ray", "auto"))
    fail(2, "--ray-cpus needs --ray", here=tmp_path, arguments=(*arguments, "--ray-cpus", 2))
