"""Answer prompts with a model that is loaded once; no clip leaves that an audit takes for a copy of protected ones.

python examples/guard_in_production.py MODEL protected.csv unseen/ served < prompts.txt
"""

import argparse
import json
import sys
from dataclasses import asdict

from auscult import AuscultError
from auscult.generation.calling import Sampling
from auscult.generation.pipelines import load_pipeline, locate_pipeline
from auscult.guidance.serving import Guard
from auscult.inputs import source_of


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="name on the hub, or a folder")
    parser.add_argument("protected", help="10 clips or more that must not come out: a folder, a manifest, or a store")
    parser.add_argument("unseen", help="sound that was not trained on: a hundred clips tell a copy from chance")
    parser.add_argument("output", help="folder for what is delivered, and for what is kept back")
    for option, default in (("--steps", 100), ("--guidance-scale", 7.0), ("--duration-s", 10.0), ("--device", "cpu")):
        parser.add_argument(option, type=type(default), default=default, help=f"of sampling; {default} by default")
    args = parser.parse_args(arguments)
    try:
        pipe = load_pipeline(locate_pipeline(args.model), device=args.device)
        sampling = Sampling(args.steps, args.guidance_scale, duration_s=args.duration_s)
        guarded = Guard.of(pipe, source_of(args.protected), args.output, sampling=sampling, null=source_of(args.unseen))
        for prompt in filter(None, map(str.strip, sys.stdin)):
            for answer in guarded([prompt]):  # or several at once: the audit of eight costs little more than that of one
                print(json.dumps(asdict(answer), default=str), flush=True)  # a path, or what each attempt is like
    except (AuscultError, ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
