"""What a tiny model trained on real recordings makes, plain and beside retrieved pairs: ESC-10, folds 1-3.

    python benchmarks/generation.py ../shared/data/esc10 [-o benchmarks/results/generation] [--images docs/results/images]

Both models are the preset ``tiny-cpu``, trained on the 80 clips of fold 1, whose captions are made of category, recording
and take; held-out losses are of fold 3. Each makes a clip of each training caption, scored beside the real clips of fold 2,
as real audio that neither saw. ``--only plain`` or ``--only retrieval`` trains one of them, so that two cores with
``--threads 1`` share the work; what is finished is not done again.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from auscult.audio import read_audio
from auscult.corpus import open_corpus
from auscult.generation.datastore import DatastoreConfig, build_datastore
from auscult.generation.generating import GenerateConfig, generate
from auscult.generation.mel import MelSpec, log_mel, prepare_waveform
from auscult.generation.reconstruction import descriptors
from auscult.generation.training import train
from auscult.generation.training_config import load_train_config
from auscult.metrics.evaluation import EvaluateConfig, System, evaluate
from auscult.metrics.results import write_evaluation
from report import print_table, write_json

ARMS = ("plain", "retrieval")
STEPS = 50  # of sampling
DURATION_S = 5.12
METRICS = ("fd", "fd_infinity", "kad", "precision", "recall", "density", "coverage")


def write_manifests(source: Path, folder: Path) -> dict[str, Path]:
    """A manifest a fold, with captions of category, recording and take."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(csv.DictReader((source / "esc10.csv").open(encoding="utf-8")))
    manifests = {}
    for fold in ("1", "2", "3"):
        manifests[fold] = folder / f"fold-{fold}.csv"
        with open(manifests[fold], "w", newline="", encoding="utf-8") as text:
            writer = csv.writer(text)
            writer.writerow(["clip_id", "path", "caption", "labels"])
            for row in rows:
                if row["fold"] == fold:
                    caption = f"{row['category']}, recording {row['freesound_id']}, take {row['take']}"
                    writer.writerow([row["clip_id"], (source / row["path"]).resolve(), caption, row["category"]])
    return manifests


def trained(arm: str, output: Path, manifests: dict[str, Path], threads: int, steps: int | None) -> dict[str, Any]:
    """The card of an arm's model; its datastore is the training set itself, never the target or its duplicates."""
    card = output / arm / "card.json"
    if not card.exists():
        settings = [f"data.train={manifests['1']}", f"data.validation={manifests['3']}", f"threads={threads}"]
        settings.append("gates.conditions=false")  # 80 clips are learned by heart: what is held out is reported, not demanded
        if steps is not None:
            settings.append(f"optimizer.steps={steps}")
        if arm == "retrieval":
            store = output / "datastore"
            if not store.exists():
                build_datastore(open_corpus(manifests["1"]), output=store, config=DatastoreConfig(model="hashed", key="text"))
            settings.append(f"retrieval.datastore={store}")
        train(load_train_config(None, preset="tiny-cpu", settings=tuple(settings)), output / arm, progress=told)
    found: dict[str, Any] = json.loads(card.read_text())
    return found


def told(done: int, total: int | None, what: str) -> None:
    """A line now and then: this runs for minutes."""
    if total and done and done % max(1, total // 20) == 0:
        print(f"{what}: {done} of {total}", flush=True)


def own_clip_found(made: Path, originals: Path) -> dict[str, float]:
    """Share of generated clips whose nearest training clip, by the audit's mel descriptor, is the one whose caption they were
    made of; and of those whose nearest is of its category."""
    spec = MelSpec()
    ours, real = (sorted(open_corpus(one), key=lambda clip: str(clip.caption)) for one in (made, originals))
    assert [clip.caption for clip in ours] == [clip.caption for clip in real]
    vectors = []
    for clips in (ours, real):
        waves = [read_audio(clip.path, sample_rate_hz=16_000).samples[: int(5.0 * 16_000)] for clip in clips]
        stacked = torch.from_numpy(np.stack([np.pad(wave, (0, 80_000 - len(wave))) for wave in waves]))
        flat = descriptors(log_mel(prepare_waveform(stacked), spec), spec).flatten(1).double()
        vectors.append(torch.nn.functional.normalize(flat, dim=1))
    nearest = (vectors[0] @ vectors[1].T).argmax(dim=1)
    alike = [ours[row].labels or real[row].labels for row in range(len(ours))]
    return {
        "own clip nearest": float((nearest == torch.arange(len(ours))).double().mean()),
        "same category nearest": float(
            np.mean([real[column].labels == alike[row] for row, column in enumerate(nearest.tolist())])
        ),
        "own clip by chance": 1 / len(real),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results/generation"))
    parser.add_argument("--images", type=Path, help="folder that curves and sheets are copied to")
    parser.add_argument("--only", choices=ARMS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, help="of training, instead of the preset's")
    given = parser.parse_args()
    manifests = write_manifests(given.source, given.output / "sets")
    cards: dict[str, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    systems: dict[str, System] = {}
    for arm in ARMS if given.only is None else (given.only,):
        cards[arm] = trained(arm, given.output, manifests, given.threads, given.steps)
        config = GenerateConfig(steps=STEPS)
        store = given.output / "datastore" if arm == "retrieval" else None
        torch.set_num_threads(given.threads)
        generate(
            str(given.output / arm / "pipeline"),
            manifests["1"],
            given.output / f"{arm}-made",
            config=config,
            datastore=store,
            batch_size=16,
            progress=told,
        )
        manifest = given.output / f"{arm}-made" / "manifest.jsonl"
        systems[arm] = System(open_corpus(manifest.parent / "audio"))  # its manifest names references, which are of fold 1
        rows.append({"model": arm, **own_clip_found(manifest, manifests["1"])})
    print_table(rows)
    if given.only is not None:
        return
    found = evaluate(
        {"fold 1 (training clips)": System(open_corpus(manifests["1"])), **systems},
        open_corpus(manifests["2"]),
        config=EvaluateConfig(metrics=METRICS),
        cache=given.output / "cache",
    )
    write_evaluation(found, given.output / "metrics.json")
    print((given.output / "metrics.md").read_text())
    losses = [
        {
            "model": arm,
            "clips": of,
            "timestep": timestep,
            **{name: f"{values[place]:.3f}" for name, values in levels["losses"].items()},
        }
        for arm, card in cards.items()
        for of, levels in card["losses"].items()
        for place, timestep in enumerate(levels["timesteps"])
    ]
    print_table(losses)
    options = {"steps": STEPS, "training_steps": given.steps, "threads": given.threads}
    write_json(given.output / "table.json", [*rows, *losses], options)
    if given.images:
        for arm in cards:
            shutil.copy(given.output / arm / "training.png", given.images / f"generation-{arm}-losses.png")
            sheets = sorted((given.output / arm / "sheets").glob("step-*.png"))
            shutil.copy(sheets[-1], given.images / f"generation-{arm}-sheet.png")


if __name__ == "__main__":
    main()
