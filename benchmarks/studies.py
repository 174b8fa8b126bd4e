"""The studies of real recordings that docs/results shows: ESC-10, folds 1-3, by the presets ``mini-cpu``.

    python benchmarks/studies.py ../shared/data/esc10 memorization|mitigation|longtail [--threads N] [-o benchmarks/results]

Captions are made of category, recording and take, so that each tells its clip apart; takes of one recording are known by the
clip id. A study that was stopped goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from pathlib import Path

from generation import write_manifests

GROUP = r"^(\d-\d+)"
ALIKE = {"longtail": '\n[tail]\nalike = ["2-28314 = 2-30322"]\n'}  # one sound under two names, see docs/results/esc10.md
STUDIES = ("memorization", "mitigation", "longtail")


def configuration(study: str, source: Path, output: Path, threads: int | None = None) -> Path:
    """The manifest of all clips, and a study's configuration over its preset."""
    folds = write_manifests(source, output / "sets")
    rows = sorted(
        (row for fold in folds.values() for row in csv.DictReader(fold.open(encoding="utf-8"))), key=lambda row: row["clip_id"]
    )
    clips = output / "sets" / "clips.csv"
    with clips.open("w", newline="", encoding="utf-8") as text:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    config = output / f"{study}.toml"
    more = "" if threads is None else f"threads = {threads}\n"
    data = f"preset = 'mini-cpu'\n{more}\n[data]\nsource = '{clips.resolve()}'\ngroup = '{GROUP}'\n"
    config.write_text(data + ALIKE.get(study, ""), encoding="utf-8")
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--threads", type=int, help="of the model, instead of the preset's 2")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results"))
    given, more = parser.parse_known_args()
    config = configuration(given.study, given.source, given.output, given.threads)
    command = [sys.executable, "-m", "auscult", "study", given.study, str(config), "-o", str(given.output / given.study), *more]
    raise SystemExit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
