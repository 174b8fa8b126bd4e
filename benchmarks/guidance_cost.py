"""What guidance costs a step: floating-point operations and seconds, while nothing fires and while everything does.

    python benchmarks/guidance_cost.py MODEL PROMPTS [-o benchmarks/results/guidance_cost.json] [--device cpu]

Measured on a pipeline (such as the patient of ``benchmarks/guidance.py``), all arms in turn in one run; and counted for a
denoiser and decoder of the sizes of Stable Audio Open, whose operations are counted without computing them (meta device).
The released method is the last row of the second table, as its code does it: three predictions, one of them with a backward
pass, and 10 s decoded, at every step, whether anything fires or not.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from auscult.corpus import open_corpus
from auscult.generation.calling import Sampling, generate_batch
from auscult.generation.pipelines import load_pipeline, locate_pipeline
from auscult.guidance.amg import AmgConfig, AntiMemorization
from auscult.guidance.index import ReferenceIndex
from auscult.guidance.latents import MelOnLatents
from auscult.guidance.shifting import shifted
from auscult.guidance.statistics import LatentStatistics
from report import print_table, write_json

CLIPS, STEPS, ROUNDS = 4, 20, 3
NEVER, ALWAYS = 2.0, -2.0  # thresholds beyond any similarity
WINDOW_S = 2.0


def arms(pipe: Any, training: Any) -> dict[str, Callable[[], AbstractContextManager[Any]]]:
    """By name, the context of sampling."""
    latents, mel = LatentStatistics.of(pipe), MelOnLatents.of(pipe, window_s=WINDOW_S)
    moments = shifted(ReferenceIndex.from_audio(training, latents), latents)
    windows = ReferenceIndex.from_audio(training, mel)

    def amg(index: ReferenceIndex, descriptor: Any, threshold: float, **changes: Any) -> Callable[[], Any]:
        config = replace(AmgConfig(threshold_low=threshold, threshold_high=threshold), **changes)
        return lambda: AntiMemorization(index, descriptor, config).attach(pipe)

    return {
        "plain": nullcontext,
        "nothing fires, latents": amg(moments, latents, NEVER),
        "nothing fires, mel of latents, 2 s window": amg(windows, mel, NEVER),
        "all fire, latents": amg(moments, latents, ALWAYS),
        "all fire, mel of latents, 2 s window": amg(windows, mel, ALWAYS),
        "all fire, gradient through the denoiser": amg(windows, mel, ALWAYS, gradient="denoiser"),
    }


def measured(pipe: Any, training: Path) -> list[dict[str, Any]]:
    """Operations and seconds of each arm, in relation to plain sampling; the median of interleaved rounds."""
    clips = list(open_corpus(training))
    prompts = [str(clip.caption) for clip in clips][:CLIPS]
    sampling = Sampling(steps=STEPS)
    wanted = arms(pipe, clips)
    seconds: dict[str, list[float]] = {name: [] for name in wanted}
    operations: dict[str, float] = {}
    for turn in range(ROUNDS + 1):
        for name, around in wanted.items():
            counter = FlopCounterMode(display=False) if turn == 0 else nullcontext()
            started = time.perf_counter()
            with counter, around():
                generate_batch(pipe, prompts, list(range(len(prompts))), sampling)
            if turn == 0:
                operations[name] = counter.get_total_flops()  # type: ignore[union-attr]
            else:
                seconds[name].append(time.perf_counter() - started)
    rows = []
    for name in wanted:
        median = sorted(seconds[name])[ROUNDS // 2]
        rows.append(
            {
                "guidance": name,
                "GFLOP": f"{operations[name] / 1e9:.1f}",
                "x plain": f"{operations[name] / operations['plain']:.2f}",
                "seconds": f"{median:.2f}",
                "x plain, seconds": f"{median / sorted(seconds['plain'])[ROUNDS // 2]:.2f}",
            }
        )
    return rows


# --- the sizes of Stable Audio Open -----------------------------------------------------------------------------------


def counted() -> list[dict[str, Any]]:
    """Operations of a step for one sound of 47 s by a denoiser and decoder of Stable Audio Open's sizes."""
    from diffusers import AutoencoderOobleck, StableAudioDiTModel

    with torch.device("meta"):
        denoiser = StableAudioDiTModel()
        decoder = AutoencoderOobleck().decoder

    def predicted(rows: int, graph: bool) -> float:
        x = torch.zeros(rows, 64, 1024, device="meta", requires_grad=graph)
        tokens = torch.zeros(rows, 130, 768, device="meta")
        rotary = tuple(torch.zeros(1025, 32, device="meta") for _ in range(2))
        facts = torch.zeros(rows, 1, 1536, device="meta")

        def call() -> Any:
            times = torch.ones(1, device="meta")
            return denoiser(x, times, tokens, global_hidden_states=facts, rotary_embedding=rotary, return_dict=False)[0]

        return flops(call, x if graph else None)

    def decoded(seconds: float, graph: bool) -> float:
        z = torch.zeros(1, 64, round(seconds * 44_100 / 2048), device="meta", requires_grad=graph)
        return flops(lambda: decoder(z), z if graph else None)

    denoiser.requires_grad_(False)
    decoder.requires_grad_(False)
    plain = predicted(2, False)
    window, window_again = decoded(WINDOW_S, False), decoded(WINDOW_S, True)
    costs = {
        "plain": plain,
        "nothing fires, latents": plain,
        "nothing fires, 2 s decoded": plain + window,
        "fires, latents": plain + predicted(1, False),
        "fires, 2 s decoded": plain + window + window_again + predicted(1, False),
        "fires, gradient through the denoiser": plain + window + window_again + predicted(1, False) + predicted(1, True),
        "released: 10 s decoded, backward through the prompt's branch, every step": plain
        + predicted(1, True)
        + decoded(10.0, True),
    }
    return [{"guidance": name, "TFLOP": f"{cost / 1e12:.2f}", "x plain": f"{cost / plain:.2f}"} for name, cost in costs.items()]


def flops(call: Callable[[], torch.Tensor], leaf: torch.Tensor | None) -> float:
    """Operations of a call, and of the backward pass to a leaf where there is one."""
    with FlopCounterMode(display=False) as counter, torch.enable_grad() if leaf is not None else torch.no_grad():
        result = call()
        if leaf is not None:
            result.sum().backward()  # parameters are frozen: what flows is the gradient by the leaf
    return float(counter.get_total_flops())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("prompts", type=Path, help="manifest of its training clips")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results/guidance_cost.json"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    pipe = load_pipeline(locate_pipeline(given.model), device=given.device, dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    sizes, rows = counted(), measured(pipe, given.prompts)
    print_table(rows)
    print_table(sizes)
    write_json(given.output, [*rows, *sizes], {"clips": CLIPS, "steps": STEPS, "rounds": ROUNDS, "device": given.device})


if __name__ == "__main__":
    main()
