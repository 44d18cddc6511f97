"""exllamav3's compiled extension: built beforehand with the box's own compiler, or on the box; packed to be carried."""

from __future__ import annotations

import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

NAME = "exllamav3_ext.so"
#: H100 and H200. No PTX for others: it would be compiled for nobody.
ARCHITECTURE = "9.0"
#: exllamav3.ext builds what it does not find. The package around it is left out: much of it wants a card.
_BUILD = (
    "import importlib.util, sys, types\n"
    "spec = importlib.util.find_spec('exllamav3')\n"
    "package = types.ModuleType('exllamav3')\n"
    "package.__path__ = list(spec.submodule_search_locations)\n"
    "sys.modules['exllamav3'] = package\n"
    "import exllamav3.ext\n"
)
#: Versions that a compiled extension was built for.
_BUILT_FOR = (
    "import importlib.metadata as m, json, sys, torch; print(json.dumps({'python': '%d.%d' % sys.version_info[:2], "
    "'torch': torch.__version__, 'cuda': torch.version.cuda, 'exllamav3': m.version('exllamav3')}))"
)


def built_for(python: str | Path, site: Path) -> dict[str, str]:
    """What decides whether a compiled extension can be loaded: versions of Python, torch, CUDA and exllamav3."""
    words = [str(python), "-c", _BUILT_FOR]
    done = subprocess.run(
        words, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def cuda_home() -> Path | None:
    """The toolkit of the nvcc on the PATH, which may be a script that starts another; torch looks beside it alone."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    done = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=False)
    top = re.search(r"^#\$ TOP=(.+)$", done.stderr, re.MULTILINE)
    return Path(top[1].strip()).resolve() if top else None


def build_environment(python: str | Path, site: Path, folder: Path, architecture: str | None = None) -> dict[str, str]:
    """For a build in `folder` by `python`, whose exllamav3 lies in `site`; for the cards of this machine if None."""
    # A toolkit without libraries lacks their headers; PyTorch's own CUDA packages have them.
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    headers = sorted(Path(packages, "nvidia").glob("cu*/include"))
    toolkit = os.environ.get("CUDA_HOME") or cuda_home()
    more = {
        **({"CUDA_HOME": str(toolkit)} if toolkit else {}),
        "PYTHONPATH": str(site),
        "TORCH_EXTENSIONS_DIR": str(folder),
        "MAX_JOBS": str(os.cpu_count()),
        "CPATH": os.pathsep.join([*map(str, headers), *filter(None, [os.environ.get("CPATH")])]),
        # ninja may lie beside a Python whose environment is not activated.
        "PATH": os.pathsep.join([str(Path(python).parent), os.environ["PATH"]]),
    }
    return {**os.environ, **more, **({"TORCH_CUDA_ARCH_LIST": architecture} if architecture else {})}


def build(python: str | Path, site: Path, folder: Path) -> Path:
    """Build it, taking up what an earlier build left. Returns the library. Raises: RuntimeError with the last lines."""
    folder.mkdir(parents=True, exist_ok=True)
    # Left by a build that was killed: torch would wait for it for ever.
    (folder / "exllamav3_ext" / "lock").unlink(missing_ok=True)
    log = folder / "build.log"
    with log.open("w") as output:
        words, environment = [str(python), "-c", _BUILD], build_environment(python, site, folder, ARCHITECTURE)
        code = subprocess.run(words, env=environment, stdout=output, stderr=output, check=False).returncode
    library = folder / "exllamav3_ext" / NAME
    if code or not library.is_file():
        raise RuntimeError(f"the build ended with {code}: {log.read_text()[-1500:]}")
    return library


def packed(library: Path, target: Path, versions: Mapping[str, str]) -> Path:
    """Stripped and compressed, with a note of what it was built for beside it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    stripped = target.with_suffix(".stripped")
    shutil.copy(library, stripped)
    subprocess.run(["strip", "--strip-unneeded", str(stripped)], check=True)
    partial = target.with_suffix(".partial")
    partial.write_bytes(lzma.compress(stripped.read_bytes(), preset=6))
    stripped.unlink()
    # First: without it nobody could tell what the archive is for.
    note_of(target).write_text(json.dumps({**versions, "architecture": ARCHITECTURE}, indent=1) + "\n")
    partial.replace(target)
    return target


def note_of(archive: Path) -> Path:
    """The file that says what a packed extension was built for."""
    return archive.with_suffix(".json")


def unpacked(archive: Path, site: Path, versions: Mapping[str, str]) -> str | None:
    """Put a packed extension into `site`. Returns why it was not, None where it was."""
    if not archive.is_file():
        return "the kit has none"
    built = json.loads(note_of(archive).read_text())
    other = [f"{name} {built[name]}, here {here}" for name, here in versions.items() if built.get(name) != here]
    if other:
        return f"it was built for {', '.join(other)}"
    site.mkdir(parents=True, exist_ok=True)
    (site / NAME).write_bytes(lzma.decompress(archive.read_bytes()))
    return None


def start_build(work: Path) -> None:
    """Build on the box, in a process that outlives this one and this call; its end stands in a file."""
    started, done, failed = (work / f"extension.{end}" for end in ("started", "done", "failed"))
    if started.is_file():
        return
    folder, site = work / "torch_extensions", work / "site"
    for path in (folder, site):
        path.mkdir(parents=True, exist_ok=True)
    failed.unlink(missing_ok=True)
    started.write_text(str(os.getpid()))
    code = (
        f"import os, pathlib, traceback\npathlib.Path({str(started)!r}).write_text(str(os.getpid()))\n"
        f"try:\n    exec({_BUILD!r})\n    pathlib.Path({str(done)!r}).touch()\n"
        f"except BaseException:\n    pathlib.Path({str(failed)!r}).write_text(traceback.format_exc())"
    )
    with (work / "extension.build.log").open("w") as log:
        words = ["setsid", "--fork", sys.executable, "-c", code]
        environment = build_environment(sys.executable, site, folder)
        subprocess.run(words, env=environment, stdout=log, stderr=log, check=True)


def wait_for_build(work: Path, until: float) -> None:
    """Wait for the build, at most until this moment of time.monotonic, and put what it made into the packages.

    Raises: RuntimeError where it is not done.
    """
    start_build(work)
    started, done, failed = (work / f"extension.{end}" for end in ("started", "done", "failed"))
    while not done.is_file() and not failed.is_file() and not _gone(started) and time.monotonic() < until:
        time.sleep(0.5)
    if done.is_file():
        # Found there as a compiled one, it is not built anew where a flag or a path differs.
        shutil.copy(work / "torch_extensions" / "exllamav3_ext" / NAME, work / "site")
        return
    if failed.is_file() or _gone(started):
        started.unlink()
        log = failed if failed.is_file() else work / "extension.build.log"
        raise RuntimeError(f"the build ended: {log.read_text()[-1500:] or 'it was killed, by the lack of memory?'}")
    raise RuntimeError("it is still being built: run the same command again, at once, to wait on")


def _gone(started: Path) -> bool:
    """Whether the process that builds is no more."""
    try:
        os.kill(int(started.read_text()), 0)
    except ProcessLookupError:
        return True
    return False
