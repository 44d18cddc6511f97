"""Packed token files: exllamav3 reads ours as we read its, and what does not fit is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from chat_models import write_chat_tokenizer
from numpy.typing import NDArray
from safetensors.numpy import save_file

from exltune.corpora import ModelTokenizer, read_sources
from exltune.corpora.packed import packed_bytes
from exltune.errors import CorruptFileError, DataError
from exltune.schema.tokens import DataSource

ROWS = np.arange(24, dtype=np.int64).reshape(4, 6)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    return ModelTokenizer(write_chat_tokenizer(tmp_path_factory.mktemp("model"), "chatml"))


@pytest.fixture(scope="module")
def exllamav3_reader() -> ModuleType:
    """exllamav3's own reader, without the package around it, which needs CUDA."""
    package = importlib.util.find_spec("exllamav3")
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).parent / "conversion" / "calibration_data.py"
    spec = importlib.util.spec_from_file_location("calibration_data", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def theirs(reader: ModuleType, path: Path, rows: int, columns: int, size: int) -> list[list[int]]:
    args = {"cal_data": str(path), "cal_rows": rows, "cal_cols": columns}
    found = reader.get_file_calibration(args, SimpleNamespace(actual_vocab_size=size))
    return [row[0].tolist() for row in found]


def ours(path: Path, tokenizer: ModelTokenizer) -> list[list[int]]:
    return [list(s.encode(tokenizer)) for s in read_sources([DataSource(path=str(path))], tokenizer)]


def test_exllamav3_reads_what_we_pack(tokenizer: ModelTokenizer, exllamav3_reader: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "cal.safetensors"
    path.write_bytes(packed_bytes(ROWS, tokenizer, {"rows": "4"}))
    assert theirs(exllamav3_reader, path, 4, 6, tokenizer.size) == ROWS.tolist() == ours(path, tokenizer)


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.int16])
def test_we_read_what_exllamav3_reads(
    tokenizer: ModelTokenizer, exllamav3_reader: ModuleType, tmp_path: Path, kind: type[np.generic]
) -> None:
    path = tmp_path / "cal.safetensors"
    lengths = np.array([6, 1, 3, 5], dtype=np.int32)
    for tensors in ({"input_ids": ROWS.astype(kind), "lengths": lengths}, {"input_ids": ROWS.astype(kind)}):
        save_file(tensors, path)
        assert ours(path, tokenizer) == theirs(exllamav3_reader, path, 4, 6, tokenizer.size)


@pytest.mark.parametrize(
    ("tensors", "fragments"),
    [
        ({"tokens": ROWS}, ("has no input_ids",)),
        ({"input_ids": ROWS[0]}, ("shape (6,)",)),
        ({"input_ids": ROWS.astype(np.float32)}, ("float32", "integers")),
        ({"input_ids": ROWS, "lengths": np.array([6, 6])}, ("shape (2,)", "4 rows")),
        ({"input_ids": ROWS, "lengths": np.array([6.0, 6, 6, 6])}, ("float64",)),
        ({"input_ids": ROWS, "lengths": np.array([6, 7, 6, 6])}, ("row 2", "length 7", "6 columns")),
        ({"input_ids": ROWS, "lengths": np.array([6, 6, 0, 6])}, ("row 3", "length 0")),
        ({"input_ids": ROWS - 1}, ("row 1", "from -1")),
        ({"input_ids": ROWS * 50}, ("row 2", "tokenizer has 321", "this model's tokenizer")),
        ({"input_ids": ROWS[:0]}, ("holds no",)),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tokenizer: ModelTokenizer, tmp_path: Path, tensors: dict[str, NDArray[Any]], fragments: tuple[str, ...]
) -> None:
    path = tmp_path / "cal.safetensors"
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)
    with pytest.raises(DataError) as caught:
        ours(path, tokenizer)
    assert all(fragment in str(caught.value) for fragment in (str(path), *fragments)), str(caught.value)


def test_padding_may_hold_anything(tokenizer: ModelTokenizer, tmp_path: Path) -> None:
    padded = ROWS.copy()
    padded[:, 4:] = -100
    save_file({"input_ids": padded, "lengths": np.full(4, 4)}, tmp_path / "cal.safetensors")
    assert ours(tmp_path / "cal.safetensors", tokenizer) == ROWS[:, :4].tolist()


def test_tokens_of_another_tokenizer_are_refused(tokenizer: ModelTokenizer, tmp_path: Path) -> None:
    other = ModelTokenizer(write_chat_tokenizer(tmp_path / "other", "glm"))
    assert other.sha256 != tokenizer.sha256
    same = ModelTokenizer(write_chat_tokenizer(tmp_path / "same", "chatml", in_config=True))
    assert same.sha256 == tokenizer.sha256
    path = tmp_path / "cal.safetensors"
    path.write_bytes(packed_bytes(ROWS, other, {}))
    with pytest.raises(DataError, match=r"another tokenizer than that of .*cannot be mixed"):
        ours(path, tokenizer)


@pytest.mark.parametrize("size", [0, 4, 60, -8])
def test_a_truncated_file_is_refused(tokenizer: ModelTokenizer, tmp_path: Path, size: int) -> None:
    path = tmp_path / "cal.safetensors"
    path.write_bytes(packed_bytes(ROWS, tokenizer, {})[:size])
    with pytest.raises(CorruptFileError, match="damaged"):
        ours(path, tokenizer)
