"""exllamav3's calibration texts, found by the package's location: importing exllamav3 needs CUDA."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from exltune.errors import DataError

#: Where the texts lie inside the package (exllamav3 1.6.5, conversion/calibration_data.py).
FOLDER = Path("conversion") / "standard_cal_data"


def bundled_text_paths() -> list[Path]:
    """Paths of exllamav3's bundled UTF-8 texts, sorted by name.

    Raises: DataError where exllamav3 is not installed or has no such texts.
    """
    spec = importlib.util.find_spec("exllamav3")
    if spec is None or spec.origin is None:
        raise DataError("exllamav3 is not installed", fix="pip install exllamav3, or give your own texts with `data`")
    folder = Path(spec.origin).parent / FOLDER
    paths = sorted(folder.glob("*.utf8"))
    if not paths:
        raise DataError("exllamav3's bundled texts are missing", where=str(folder), fix="Give your own with `data`")
    return paths
