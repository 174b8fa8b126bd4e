"""How well copies of sounds are found, named and located: auscult's detector, the audit paper's, and its peers.

    python benchmarks/copy_detection/run.py [--esc10 ../shared/data/esc10] [--seed 5] [--clap FOLDER]
        [-o benchmarks/results/copy_detection.json] [--markdown docs/results/copy_detection.md]

Builds references, transformed copies (35 kinds, light to heavy, alone and in chains), unrelated queries and a background
set from real recordings (ESC-10, where the folder is there) and synthesized sound, runs every system, and prints tables.
With --predictions FOLDER also what each system said, and the truth, for `auscult.metrics.tables` to read.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the folder of the package, not the package itself

from auscult.metrics.copy_detection import Interval, breakdown, evaluate
from auscult.metrics.tables import write_predictions, write_truth
from copy_detection.dataset import build, pool
from copy_detection.systems import all_systems
from copy_detection.tables import facts, json_rows, page, suspects
from report import write_json

Results = dict[str, dict[str, dict[str, dict[str, Interval]]]]


def main() -> None:
    options = _options()
    folder = options.esc10 if options.esc10.is_dir() else None
    sounds = "ESC-10 (folds 1-3) and synthesized music" if folder else "Synthesized sounds only (no recordings were at hand)"
    start = time.perf_counter()
    benchmark = build(pool(folder, seed=options.seed), seed=options.seed)
    print(f"{sounds}: {facts(benchmark)}, built in {time.perf_counter() - start:.0f} s")
    systems, notes = all_systems(clap=options.clap, top=options.top)
    print(*notes, sep="\n")
    results: Results = {}
    wrong, seconds = {}, {}
    for name, system in systems.items():
        start = time.perf_counter()
        predictions = system(benchmark)
        seconds[name] = round(time.perf_counter() - start, 1)
        print(f"{name}: {seconds[name]} s")
        results[name] = {
            "all": {"all": evaluate(benchmark.truths, predictions, resamples=options.resamples)},
            "group": breakdown(benchmark.truths, predictions, by=lambda t: t.group, resamples=options.resamples),
            "kind": breakdown(benchmark.truths, predictions, by=lambda t: t.kind),
        }
        wrong[name] = suspects(benchmark, predictions)
        if options.predictions:
            options.predictions.mkdir(parents=True, exist_ok=True)
            write_predictions(options.predictions / f"{''.join(c for c in name if c.isalnum())}.parquet", predictions)
    if options.predictions:
        write_truth(options.predictions / "truth.parquet", benchmark.truths)
    used = {"seed": options.seed, "top": options.top, "resamples": options.resamples, "sounds": sounds}
    command = " ".join(["python benchmarks/copy_detection/run.py", *sys.argv[1:]])
    text = page(benchmark, results, command=command, sounds=sounds, options=used, notes=notes)
    print(text)
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(text, "utf-8")
        print(options.markdown)
    details = {"counts": facts(benchmark), "seconds": seconds, "notes": notes, "wrong predictions of highest score": wrong}
    write_json(options.output, json_rows(results), used | details)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--esc10", type=Path, default=Path("../shared/data/esc10"), help="recordings; synthesized if absent")
    parser.add_argument("--seed", type=int, default=5)
    # wrong runners-up count, so that the threshold must keep references apart and not only shut out unrelated queries
    parser.add_argument("--top", type=int, default=3, help="predictions per query (at most one is right)")
    parser.add_argument("--resamples", type=int, default=200, help="draws of the bootstrap")
    parser.add_argument("--clap", type=Path, help="folder with CLAP's weights")
    parser.add_argument("--predictions", type=Path, help="folder for truth.parquet and the predictions of each system")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results/copy_detection.json"))
    parser.add_argument("--markdown", type=Path, help="page to write, such as docs/results/copy_detection.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()
