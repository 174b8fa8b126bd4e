"""The studies of real recordings that docs/results shows: ESC-10, folds 1-3, by the presets ``mini-cpu``.

    python benchmarks/studies.py ../shared/data/esc10 memorization|mitigation|longtail [--threads N] [-o OUT] [--images DIR]

Captions are made of category, recording and take, so that each tells its clip apart; takes of one recording are known by the
clip id. A study that was stopped goes on when the same command is given again. ``--images`` takes the figures that docs/results
shows out of the finished report.
"""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
import sys
from pathlib import Path

from generation import write_manifests

GROUP = r"^(\d-\d+)"
ALIKE = {"longtail": '\n[tail]\nalike = ["2-28314 = 2-30322"]\n'}  # one sound under two names, see docs/results/esc10.md
STUDIES = ("memorization", "mitigation", "longtail")
FIGURES = {  # by what a report says of them to those who cannot see
    "memorization-curve": "Share of generated clips flagged against the number of training clips",
    "memorization-epochs": "Share of generated clips flagged against steps of training",
    "memorization-scores-8": "Top-1 scores, 8 training clips, by contrast",
    "memorization-scores-240": "Top-1 scores, 240 training clips, by contrast",
    "mitigation-tradeoff": "Share of clips flagged by contrast against ",
    "longtail-classes": "Share of generated clips whose nearest real clip is of their class",
    "longtail-nearest": "What the nearest clip is by contrast",
}
CHART = re.compile(r'aria-label="([^"]*)">\s*<div class="wide">(<svg.*?</svg>)', re.DOTALL)


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


def write_figures(report: Path, images: Path) -> None:
    """The figures of a report, in their form for wide screens."""
    images.mkdir(parents=True, exist_ok=True)
    for label, svg in CHART.findall(report.read_text(encoding="utf-8")):
        for name in (name for name, start in FIGURES.items() if label.startswith(start)):
            (images / f"{name}.svg").write_text(f"{svg}\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--threads", type=int, help="of the model, instead of the preset's 2")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--images", type=Path, metavar="DIR")
    given, more = parser.parse_known_args()
    config = configuration(given.study, given.source, given.output, given.threads)
    folder = given.output / given.study
    command = [sys.executable, "-m", "auscult", "study", given.study, str(config), "-o", str(folder), *more]
    if code := subprocess.run(command, check=False).returncode:
        raise SystemExit(code)
    if given.images and (folder / "report.html").exists():
        write_figures(folder / "report.html", given.images)


if __name__ == "__main__":
    main()
