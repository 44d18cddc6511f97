"""Progress where no bar can be drawn."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from exltune.cli import console
from exltune.cli.console import RichReporter


def test_a_log_gets_a_line_every_minute_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    reporter, log = RichReporter(), io.StringIO()
    reporter.console = Console(file=log, width=120)
    with reporter.stage("Quantizing") as progress:
        # It was taken up again at half, and goes at a tenth in a minute: four more minutes.
        progress(50, 100, "layer 5")
        for second in range(1, 61):
            now = 1000.0 + second
            progress(50 + second // 6, 100, "layer 6")
        assert log.getvalue() == "Quantizing: 60%, about 4 min left layer 6\n"
        now = 1070.0
        progress(61, 100, "layer 6")
    assert log.getvalue().splitlines()[1:] == ["Quantizing: done in 70 s"]
