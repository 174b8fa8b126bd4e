"""Does Stable Audio Open, or another pipeline, replicate your clips? Generates from your prompts, audits, writes a report.

    python examples/audit_stable_audio_open.py prompts.txt clips.csv audited --unseen unseen/ --device cuda

Ends with 0 if nothing is flagged, 1 if something is, 2 if the audit could not decide, or could not run.
"""

import argparse

from auscult import AuscultError
from auscult.audit import audit
from auscult.generation.generating import GenerateConfig, generate
from auscult.inputs import source_of
from auscult.report import audit_verdict, undecided, write_report


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", help="text file with a prompt a line, or a manifest with captions")
    parser.add_argument("clips", help="what must not be replicated: a folder, a manifest, or a store of auscult index")
    parser.add_argument("output", help="folder for the generated clips and their audit")
    parser.add_argument("--unseen", help="sound that was not trained on: ten clips a prompt let a single copy be told")
    parser.add_argument("--model", default="stabilityai/stable-audio-open-1.0", help="name on the hub, or a folder")
    for option, default in (("--steps", 100), ("--guidance-scale", 7.0), ("--duration-s", 10.0), ("--device", "cpu")):
        parser.add_argument(option, type=type(default), default=default, help=f"of sampling; {default} by default")
    args = parser.parse_args(arguments)
    try:
        config = GenerateConfig(steps=args.steps, guidance_scale=args.guidance_scale, duration_s=args.duration_s)
        clips, unseen = source_of(args.clips), source_of(args.unseen) if args.unseen else None
        made = str(generate(args.model, args.prompts, f"{args.output}/generated", config=config, device=args.device).manifest)
        found = audit(source_of(made), clips, null=unseen, output=f"{args.output}/audit", overwrite=True, finish=write_report)
    except (AuscultError, ValueError, OSError) as error:
        parser.error(str(error))
    print(audit_verdict(found.card), *found.card["warnings"], found.path / "report.html", sep="\n")
    return 2 if undecided(found.card) else int(found.card["counts"]["flagged"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
