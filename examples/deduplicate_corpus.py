"""Copies in a training set are what a model learns by heart: find them, and write a manifest of the clips to train on.

python examples/deduplicate_corpus.py training.csv deduplicated --background background/
"""

import argparse
import json
from dataclasses import asdict

from auscult import AuscultError, Clip, deduplicate, index, load_descriptor
from auscult.corpus import open_corpus
from auscult.report import dedup_verdict, write_report


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="a folder, or a manifest with a path column, and captions if there are any")
    parser.add_argument("output", help="folder for kept.jsonl, the report of what goes, and the descriptions")
    parser.add_argument("--background", help="64 or more clips of unrelated sound, against which similarity is measured")
    args = parser.parse_args(arguments)
    try:
        corpus, background = open_corpus(args.corpus), open_corpus(args.background) if args.background else None
        store = index(corpus, f"{args.output}/store", descriptor=load_descriptor("mel"), keep_vanished=False)
        output = f"{args.output}/duplicates"
        found = deduplicate(store, output=output, background=background, overwrite=True, finish=write_report)
    except (AuscultError, ValueError, OSError) as error:
        parser.error(str(error))
    dropped = {row["clip_id"] for row in found.clusters().to_pylist() if not row["keep"]}
    kept = {*store.clips()["clip_id"].to_pylist()} - dropped  # what could not be read is in neither
    with open(f"{args.output}/kept.jsonl", "w", encoding="utf-8") as manifest:
        for clip in corpus:
            if isinstance(clip, Clip) and clip.clip_id in kept:
                manifest.write(json.dumps({name: value for name, value in asdict(clip).items() if value}) + "\n")
    print(dedup_verdict(found.card), *found.card["warnings"], found.path / "report.html", manifest.name, sep="\n")


if __name__ == "__main__":
    main()
