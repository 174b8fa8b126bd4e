"""A study that is killed again and again, as any study should survive it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_SCRIPT = """
import importlib, sys
if __name__ == "__main__":
    config = importlib.import_module(sys.argv[1])._config()
    getattr(importlib.import_module(f"auscult.studies.{sys.argv[2]}.study"), f"study_{sys.argv[2]}")(config, sys.argv[3])
"""


def kill_when_there(tests: str, study: str, folder: Path, places: Sequence[str]) -> Path:
    """Run the study of the tests' ``_config`` and kill it once each place is there; returns its folder.

    Parameters
    ----------
    tests
        Name of the module that has the configuration.
    study
        Such as ``memorization``.
    folder
        For script and study.
    places
        Below the study's folder, in the order in which they come.
    """
    script, out = folder / "study.py", folder / "out"
    script.write_text(_SCRIPT)
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1] / "src")])
    command = [sys.executable, str(script), tests, study, str(out)]
    for place in places:
        with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}) as run:
            while not (out / place).exists():
                assert run.poll() is None, f"ended before {place} was there"
                time.sleep(0.01)
            run.send_signal(signal.SIGKILL)
        assert not (out / "card.json").exists()
    return out
