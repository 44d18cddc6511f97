"""Which steps are taken on the box, in which order, and how many seconds each may take.

A machine is lent for 15 minutes, its start included: two calls, of 9.5 minutes and of 3.5. The limits of the steps add
up to no more (tests/unit/test_gpu_parity.py), so whatever hangs or is slow, the steps behind it are still taken.
"""

from __future__ import annotations

from dataclasses import dataclass

#: What a call may take, less what starting Python and writing results costs.
CALL_SECONDS = (555, 200)


@dataclass(frozen=True)
class Step:
    """One step.

    seconds: the most it may take. patient: it may take all that is left of the call, as no step behind it can be taken
    without it. local: it readies the machine, so another machine takes it again. needs: steps that must have succeeded
    before. hint: what to do where it failed; WORK is the work folder.
    """

    name: str
    seconds: int
    hint: str
    needs: tuple[str, ...] = ()
    patient: bool = False
    local: bool = False


#: What must be known first comes first. The names are those of the modules of `steps`.
STEPS = (
    Step("install", 40, "prepare a kit for this Python: gpu_parity.py --prepare KIT --python python3.12", local=True),
    Step(
        "extension",
        45,
        "see WORK/extension.build.log; nvcc and c++ must be on the PATH, and torch must be a CUDA build",
        ("install",),
        patient=True,
        local=True,
    ),
    Step("tests", 160, "see WORK/tests.log", ("extension",)),
    Step("scores", 60, "see WORK/scores.log", ("extension",)),
    Step("throughput", 150, "free 25 GB under WORK, or see WORK/throughput.log", ("extension",)),
    Step("encoder", 40, "quantize_tiles could not be called: see WORK/encoder.log", ("extension",)),
    Step("memory", 60, "see WORK/memory.log", ("extension",)),
    Step("conversion", 90, "see WORK/conversion.log and WORK/quants/.exltune/*/convert.log", ("extension",)),
    Step("chain", 110, "see WORK/chain.log; exltune tune goes on where it ended", ("extension",)),
)
