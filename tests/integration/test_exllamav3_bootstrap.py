"""The one hook that puts the stand-in under exllamav3, in this process and in children."""

from __future__ import annotations

import os
import subprocess
import sys
import types

import pytest

from tests.standin.hook import child_pythonpath, install

CHILD = """
import sys
assert "torch" not in sys.modules
import exllamav3
from exllamav3.ext import exllamav3_ext
print(exllamav3.Model.__name__, exllamav3_ext.__name__, "triton" in sys.modules)
"""


def test_children_have_it_by_their_pythonpath() -> None:
    environment = os.environ | {"PYTHONPATH": child_pythonpath(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["Model", "tests.standin.extension", "False"]


def test_twice_is_once() -> None:
    before = list(sys.meta_path)
    install()
    assert sys.meta_path == before


def test_what_is_not_restated_says_so(exllamav3: types.ModuleType) -> None:
    from exllamav3.ext import exllamav3_ext

    with pytest.raises(NotImplementedError, match="exl3_moe"):
        exllamav3_ext.exl3_moe()


def test_triton_is_as_absent_as_before(exllamav3: types.ModuleType) -> None:
    import importlib.util

    from torch.utils._triton import has_triton_package

    assert has_triton_package() == (importlib.util.find_spec("triton") is not None)
