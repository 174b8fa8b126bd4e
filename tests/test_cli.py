"""The command line as a user meets it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile as sf

from conftest import sound

ROOT = Path(__file__).parents[1]


def auscult(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "auscult", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)


def test_version_and_help() -> None:
    import auscult as package

    assert auscult("--version").stdout.strip() == f"auscult {package.__version__}"
    listing = auscult("--help").stdout
    for command in ("demo", "index", "audit", "dedup", "report", "info"):
        assert command in listing
    assert "--install-completion" in listing


def test_every_command_is_documented() -> None:
    listing = auscult("--help").stdout
    commands = re.findall(r"^│ (\w+) ", listing, re.MULTILINE)
    assert len(commands) >= 6
    page = (ROOT / "docs" / "commands.md").read_text("utf-8")
    for command in commands:
        assert f"## auscult {command}" in page, f"docs/commands.md does not document {command}"
        for option in re.findall(r"│\s+(--[a-z0-9-]+)", auscult(command, "--help").stdout):
            if option != "--help":
                assert option in page, f"docs/commands.md does not name {option} (auscult {command})"


def test_walk_through(write_sounds, tmp_path: Path) -> None:
    training, generated = write_sounds("training", 30), write_sounds("generated", 5, first=100)
    sf.write(generated / "copy.wav", sound(4), 16_000)
    result = auscult("index", training, "-o", tmp_path / "store", "--duration", 1)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == str(tmp_path / "store")
    result = auscult("audit", generated, "--reference", tmp_path / "store", "-o", tmp_path / "audit", "--tau", 0.53)
    assert result.returncode == 0, result.stderr
    assert "of 6 generated clips" in result.stdout
    assert result.stdout.splitlines()[-1] == str(tmp_path / "audit" / "report.html")
    assert auscult("report", tmp_path / "audit").returncode == 0
    result = auscult("info", tmp_path / "audit", "--verify", "--json")
    assert json.loads(result.stdout)["problems"] == []
    assert "windows" in auscult("info", tmp_path / "store").stdout
    result = auscult("dedup", tmp_path / "store", "-o", tmp_path / "dedup", "--json")
    assert json.loads(result.stdout)["kind"] == "dedup"


def test_skipped_inputs_set_the_exit_code(write_sounds, tmp_path: Path) -> None:
    folder = write_sounds("in", 3)
    (folder / "broken.wav").write_bytes(b"x")
    result = auscult("index", folder, "-o", tmp_path / "store")
    assert result.returncode == 1
    assert "1 input could not be read" in result.stderr
    assert auscult("index", folder, "-o", tmp_path / "store", "--max-skipped", 1).returncode == 0


def test_damage_makes_info_fail(write_sounds, tmp_path: Path) -> None:
    auscult("index", write_sounds("in", 3), "-o", tmp_path / "store")
    (tmp_path / "store" / "clips.parquet").write_bytes(b"")
    result = auscult("info", tmp_path / "store", "--verify")
    assert result.returncode == 2
    assert "clips.parquet" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["audit", "nowhere", "--reference", "nowhere", "-o", "out"], "nowhere: does not exist"),
        (["audit", ".", "--reference", ".", "-o", "out", "--tau", "often"], "tau should be"),
        (["index", ".", "-o", "out", "--descriptor", "nope"], "unknown descriptor"),
        (["index", ".", "-o", "out", "--duration", "0"], "duration must be positive"),
        (["index", ".", "-o", "out", "--duration", "5", "--descriptor", "contrast"], "duration is a setting of mel only"),
        (["audit", ".", "--reference", ".", "-o", "out", "--tau", "match:nowhere"], "nowhere: does not exist"),
        (["index", "m.csv", "-o", "out", "--encoding", "klingon"], "unknown encoding"),
        (["info", "."], "no card.json here"),
        (["report", "."], "no card.json here"),
        (["dedup", ".", "-o", "out", "--config", "c.toml"], "did you mean keep"),
        (["dedup", ".", "-o", "out", "--config", "missing.toml"], "missing.toml: No such file"),
        (["frobnicate"], "No such command"),
        (["info", "foreign"], "not a card of auscult's"),
        (["index", ".", "-o", "out", "--descriptor", "mel/1(foo=1)"], "takes no such settings: foo; it has duration_s"),
        (["dedup", ".", "-o", "out", "--config", "type.toml"], "coverage should be a number"),
    ],
)
def test_user_errors_are_one_line_and_no_trace(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "m.csv").write_text("path\n")
    (tmp_path / "c.toml").write_text('kep = "first"\n')
    (tmp_path / "type.toml").write_text('coverage = "half"\n')
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "card.json").write_text("[]")
    result = auscult(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow  # `make demo` runs it
def test_demo_finds_what_it_planted(tmp_path: Path) -> None:
    result = auscult("demo", "-o", tmp_path / "demo", "--json")
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    for line in summary["replicas"] + summary["duplicates"]:
        if line["expected"]:
            assert line["found"] == line["planted"], line
    found = sum(line["found"] for line in summary["replicas"])
    assert summary["false_alarms"] <= 0.15 * (found + summary["false_alarms"])
    assert all(Path(path).is_file() for path in summary["reports"])


def test_what_a_failed_run_keeps_is_announced(write_sounds, tmp_path: Path) -> None:
    training, few = write_sounds("training", 20), write_sounds("few", 2, first=100)
    command = ["audit", few, "--reference", training, "--background", few, "-o", tmp_path / "a", "--duration", 1]
    result = auscult(*command)
    assert result.returncode == 2
    assert "a.partial: keeps what was described" in " ".join(result.stderr.split())
    result = auscult(*command[:-2], "--duration", 0)
    assert "keeps" not in result.stderr


def test_a_second_index_run_says_what_has_changed(write_sounds, tmp_path: Path) -> None:
    folder = write_sounds("in", 3)
    assert "unchanged" not in auscult("index", folder, "-o", tmp_path / "store").stdout
    write_sounds("in", 2, first=3)
    assert "2 new, 0 changed, 3 unchanged, 0 vanished" in auscult("index", folder, "-o", tmp_path / "store").stdout
    summary = json.loads(auscult("index", folder, "-o", tmp_path / "store", "--json").stdout)
    assert summary["changes"] == {"new": 0, "changed": 0, "retried": 0, "unchanged": 5, "vanished": 0, "repaired": []}


def test_info_says_what_went_in_and_leaves_out_what_is_not_set(write_sounds, tmp_path: Path) -> None:
    folder = write_sounds("in", 25)
    assert auscult("audit", folder, "--reference", folder, "-o", tmp_path / "a", "--duration", 1, "--tau", 0.5).returncode == 0
    lines = {line.split()[0]: line.split()[1:] for line in auscult("info", tmp_path / "a").stdout.splitlines() if line.strip()}
    assert lines["threshold.separated"] == ["yes"]
    assert "inputs.generated" in lines
    assert "inputs.references" in lines
    assert "config.fdr" not in lines
    assert "note:" in lines
    assert "report.html has none" in auscult("info", tmp_path / "a", "--verify").stdout


def test_verify_sees_a_damaged_table_of_an_audit(write_sounds, tmp_path: Path) -> None:
    folder = write_sounds("in", 25)
    assert auscult("audit", folder, "--reference", folder, "-o", tmp_path / "a", "--duration", 1).returncode == 0
    assert auscult("info", tmp_path / "a", "--verify").returncode == 0
    (tmp_path / "a" / "matches.parquet").write_bytes(b"junk")
    result = auscult("info", tmp_path / "a", "--verify")
    assert (result.returncode, "matches.parquet" in result.stderr) == (2, True)
