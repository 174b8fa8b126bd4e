"""How well copies of sounds are found, named and located: auscult's detector, the audit paper's, and its peers.

    python benchmarks/copy_detection/run.py [--esc10 ../shared/data/esc10] [--seed 5] [--clap FOLDER] [--workers 2]
        [-o benchmarks/results/copy_detection.json] [--markdown docs/results/copy_detection.md]

Builds references with 2,000 distractors among them, transformed copies (light to heavy, alone and in chains), four times as
many unrelated queries, and a background and a null set from real recordings (ESC-10, where the folder is there) and
synthesized sound, runs every system, and prints tables. With --predictions FOLDER also what each system said, and the truth,
for `auscult.metrics.tables` to read.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the folder of the package, not the package itself

from auscult.comparison import AuditConfig
from auscult.metrics.copy_detection import Interval
from auscult.metrics.tables import write_predictions, write_truth
from copy_detection.dataset import Sizes, build, pool
from copy_detection.judging import DEEP, Judged, judge, shares, timed
from copy_detection.page import page
from copy_detection.sets import Benchmark, Sound
from copy_detection.systems import all_systems, listed
from copy_detection.tables import facts, json_details, json_rows
from fit_whitening import fitted_on
from report import changed_files, commit, write_json


def main() -> None:
    options = _options()
    state = commit()  # before anything is written
    print(f"Commit {state}")
    folder = options.esc10 if options.esc10.is_dir() else None
    sounds = "ESC-10 (folds 1-3) and synthesized music" if folder else "Synthesized sounds only (no recordings were at hand)"
    start = time.perf_counter()
    pooled = pool(folder, seed=options.seed)
    benchmark = build(pooled, seed=options.seed, sizes=_sizes(options))
    print(f"{sounds}: {facts(benchmark)}, built in {time.perf_counter() - start:.0f} s")
    known = fitted_on(pooled)
    systems, notes = all_systems(clap=options.clap, top=max(DEEP, options.top), workers=options.workers)
    judged: dict[str, Judged] = {}
    for name, system in systems.items():
        answer, seconds, peak = timed(system, benchmark)
        print(f"{name}: {seconds:.0f} s, peak {peak:.2f} GB")
        sources = {s.source for s in known}
        judged[name] = judge(
            benchmark, answer, top=options.top, resamples=options.resamples, fitted=sources, seconds=seconds, peak_gb=peak
        )
        if options.predictions:
            options.predictions.mkdir(parents=True, exist_ok=True)
            path = options.predictions / f"{''.join(c for c in name if c.isalnum())}.parquet"
            write_predictions(path, answer.predictions)
    if options.predictions:
        write_truth(options.predictions / "truth.parquet", [q.truth for q in benchmark.asked])
    stage = first_stage(benchmark, resamples=options.resamples, workers=options.workers)
    used = {name: value for name, value in vars(options).items() if isinstance(value, int | float)}
    used |= {"sounds": sounds, "candidates": AuditConfig().candidates, "commit": state}
    command = " ".join(["python benchmarks/copy_detection/run.py", *sys.argv[1:]])
    fitted = fits(benchmark, known)
    text = page(benchmark, judged, stage, command=command, sounds=sounds, options=used, fitted=fitted, notes=notes)
    print(text)
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(text, "utf-8")
        print(options.markdown)
    details = {"counts": facts(benchmark), "notes": notes, "fitted": fitted, "systems": json_details(judged)}
    write_json(options.output, json_rows(judged, stage), used | details)
    if files := changed_files():
        print(f"The code was not that of a commit: {', '.join(files)}", file=sys.stderr)


def first_stage(benchmark: Benchmark, *, resamples: int, workers: int) -> dict[str, dict[str, Interval]]:
    """Recall of auscult's first stage over all positives, by group and by kind; reversed copies have lines of their own."""
    kept = listed(benchmark, workers=workers)
    copies = [truth for truth in benchmark.truths if truth.reference_id is not None]
    both = copies + [query.truth for query in benchmark.apart]
    return {
        "all": shares(copies, kept, by=lambda _: "all", resamples=resamples),
        "group": shares(both, kept, by=lambda truth: truth.group, resamples=resamples),
        "kind": shares(both, kept, by=lambda truth: truth.kind, resamples=resamples),
    }


def fits(benchmark: Benchmark, known: list[Sound]) -> list[str]:
    """What of the detector was fitted on recordings that occur here, a sentence each."""
    fitted = {s.source for s in known}
    positives = {t.source for t in benchmark.truths if t.reference_id is not None}
    negatives = {t.source for t in benchmark.truths if t.reference_id is None}
    background = {s.source for s in benchmark.background}
    return [
        "The whitening matrix (`benchmarks/fit_whitening.py`): on 60 synthesized clips of a seed that is not used here, and on "
        f"{len(known)} recordings of {len(fitted)} uploaders, half of those of ESC-10, as counted in the sounds at hand. Of "
        f"these uploaders, {len(fitted & positives)} occur here with copied clips (of {len(positives)} sources of positives), "
        f"{len(fitted & negatives)} with negatives (of {len(negatives)}), {len(fitted & background)} with background clips. "
        "The table below leaves out all queries of theirs.",
        "`USUAL_SPREAD` in `src/auscult/alignment/scoring.py` (`benchmarks/fit_spread.py`): 11 numbers, the medians over the "
        "queries of seeds 0 and 1 of this benchmark as it was when they were fitted (the script prints what they would be "
        "now). All seeds deal the same recordings, to other roles and transformations: every recording here may have been "
        "among them.",
        "The detector's other settings were chosen by trials on seeds of the same recordings (`docs/decisions.md`).",
    ]


def _sizes(options: argparse.Namespace) -> Sizes:
    sizes = {name: getattr(options, name) for name in ("positives_per_kind", "chains", "distractors", "null_queries")}
    return Sizes(**{name: value for name, value in sizes.items() if value is not None})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--esc10", type=Path, default=Path("../shared/data/esc10"), help="recordings; synthesized if absent")
    parser.add_argument("--seed", type=int, default=5)
    # wrong runners-up count, so that the threshold must keep references apart and not only shut out unrelated queries
    parser.add_argument("--top", type=int, default=3, help="predictions per query in the ranking (at most one is right)")
    parser.add_argument("--resamples", type=int, default=200, help="draws of the bootstrap")
    parser.add_argument("--positives-per-kind", type=int, help=f"default {Sizes.positives_per_kind}")
    parser.add_argument("--chains", type=int, help=f"positives that are chains; default {Sizes.chains}")
    parser.add_argument("--distractors", type=int, help=f"references that nothing copies; default {Sizes.distractors:,}")
    parser.add_argument("--null-queries", type=int, help=f"clips for p-values; default {Sizes.null_queries}")
    parser.add_argument("--workers", type=int, default=2, help="threads of auscult's detector")
    parser.add_argument("--clap", type=Path, help="folder with CLAP's weights")
    parser.add_argument("--predictions", type=Path, help="folder for truth.parquet and the predictions of each system")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results/copy_detection.json"))
    parser.add_argument("--markdown", type=Path, help="page to write, such as docs/results/copy_detection.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()
