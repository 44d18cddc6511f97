"""`python -m tests.golden.update`: write golden results and the lock of sources, where versions allow it.

Refused where an algorithm gives other results than those recorded of its version: raise it in
exltune/schema/versions.py. A change that keeps all results needs this run and nothing else. Where the golden
computation itself has changed, remove its file first.
"""

from __future__ import annotations

import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch

from tests.golden import results, sources

#: Differences that are shown of one algorithm.
_SHOWN = 5


def main() -> int:
    """Returns the exit code: 1 where a version has to be raised first."""
    torch.set_num_threads(1)
    refused = [name for name in results.GOLDEN if not _update(name)]
    if refused:
        print(
            f"\nNothing is locked. Raise the version of {', '.join(refused)} in exltune/schema/versions.py, "
            "or bring the old results back."
        )
        return 1
    now, before = sources.lock(), sources.read_lock()
    for name in results.WITHOUT:
        if name in before and now[name] != before[name]:
            print(f"{name} has changed and has no golden results: {results.WITHOUT[name]}")
    sources.write_lock(now)
    print(f"Locked {len(now)} algorithms.")
    return 0


def _update(name: str) -> bool:
    """Record results of an algorithm; False where they changed and its version did not."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = results.as_json(results.GOLDEN[name].compute(Path(folder)))
    recorded, versions = results.read(name), results.versions(name)
    version = versions[name]
    seconds = f"{time.perf_counter() - began:.1f} s"
    if recorded is not None and recorded.versions == versions:
        lines = list(islice(results.differences(recorded.results, found, results.GOLDEN[name].rtol), _SHOWN))
        print(f"{name} {version}: {'OTHER RESULTS' if lines else 'as recorded'} ({seconds})")
        for line in lines:
            print(f"    {line}")
        return not lines
    results.write(name, results.Recorded(versions, found))
    print(f"{name} {version}: recorded ({seconds})")
    return True


if __name__ == "__main__":
    sys.exit(main())
