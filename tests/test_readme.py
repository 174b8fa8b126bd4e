"""The README's snippets run as they are written."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import soundfile as sf

from conftest import sound

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def test_snippets_run(write_sounds: Callable[..., Path], tmp_path: Path) -> None:
    write_sounds("training", 40, duration_s=2.0)
    write_sounds("background", 20, first=100, duration_s=2.0)
    write_sounds("unseen", 20, first=300, duration_s=2.0)
    generated = write_sounds("generated", 6, first=200, duration_s=2.0)
    sf.write(generated / "copy.wav", sound(3, 2.0), 16_000)
    ran = 0
    for language, code in re.findall(r"```(bash|python)\n(.*?)```", README, re.DOTALL):
        if language == "python":
            subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=300)
            ran += 1
            continue
        for line in code.splitlines():
            program, *arguments = line.split()
            assert program == "auscult"
            if arguments[0] == "review" and "--export" not in arguments:  # serves until it is stopped
                address = serve_until_ready([*arguments, "--no-browser", "--port", "0"], tmp_path)
                assert address.startswith("http://127.0.0.1:")
                ran += 1
                continue
            subprocess.run([sys.executable, "-m", "auscult", *arguments], cwd=tmp_path, check=True, timeout=300)
            ran += 1
    assert ran == 11
    assert (tmp_path / "verdicts.csv").is_file()
    assert (tmp_path / "audit" / "report.html").is_file()
    assert (tmp_path / "duplicates" / "keep.txt").is_file()


def serve_until_ready(arguments: list[str], folder: Path) -> str:
    """The address that a server prints, which then is stopped as by Ctrl-C."""
    command = [sys.executable, "-m", "auscult", *arguments]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0
    return address


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (Path(__file__).parents[1] / target).exists(), target


def test_the_two_commands_stand_on_the_first_screen() -> None:
    first_screen = README.splitlines()[:25]
    assert any("make demo" in line for line in first_screen)
    assert any("make test" in line for line in first_screen)
