"""What the audit paper's method finds in real recordings: ESC-10, folds 1-3.

    python benchmarks/esc10.py ../shared/data/esc10 [-o benchmarks/results/esc10] [--figures docs/results/images]

Deduplicates the 240 clips, and audits fold 1 against fold 2 with fold 3 as background. No model is involved: whatever is
flagged is a coincidence or a copy in the corpus. Takes of one recording (same Freesound id) are natural near-neighbours;
the table says where they rank.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image

from auscult.audio import read_audio
from auscult.audit import AuditConfig, audit
from auscult.corpus import open_corpus
from auscult.duplicates import DedupConfig, deduplicate
from auscult.figures import COLOR_MAP, QUERY_COLOR, REFERENCE_COLOR, histogram_svg, spectrogram_db
from auscult.report import write_report
from report import print_table, write_json

DURATION_S = 5.0


def write_folds(source: Path, folder: Path) -> dict[str, Path]:
    """Manifests of the folds, and of all clips, with absolute paths and categories as captions."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(csv.DictReader((source / "esc10.csv").open(encoding="utf-8")))
    manifests = {}
    for name in ("1", "2", "3", "all"):
        manifests[name] = folder / f"fold-{name}.csv"
        with open(manifests[name], "w", newline="", encoding="utf-8") as text:
            writer = csv.writer(text)
            writer.writerow(["clip_id", "path", "caption"])
            for row in rows:
                if name in {row["fold"], "all"}:
                    writer.writerow([row["clip_id"], (source / row["path"]).resolve(), row["category"]])
    return manifests


def take_ranks(pairs: list[tuple[str, str, float]], recording: dict[str, str], category: dict[str, str]) -> dict[str, object]:
    """Among the pairs, best first: how many of the top 10, 20 and 50 are takes of one recording."""
    same = [recording[one] == recording[other] for one, other, _ in pairs]
    alike = [category[one] == category[other] for one, other, _ in pairs]
    row: dict[str, object] = {}
    for n in (10, 20, 50):
        row[f"same recording in top {n}"] = sum(same[:n])
        row[f"same category in top {n}"] = sum(alike[:n])
    return row


def waveform_correlation(one: str, other: str) -> float:
    """Largest absolute normalized cross-correlation of two waveforms over all lags: near 1 only for the same recording."""
    x, y = (read_audio(path, sample_rate_hz=16_000).samples.astype(np.float64) for path in (one, other))
    correlation = np.fft.irfft(np.fft.rfft(x, 2**18) * np.conj(np.fft.rfft(y, 2**18)))
    return float(np.abs(correlation).max() / np.sqrt((x @ x) * (y @ y)))


def draw_pairs(pairs: list[tuple[str, str, float]], paths: dict[str, str], labels: dict[str, str], target: Path) -> None:
    """Spectrograms of the top pairs, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.9 * len(pairs)), layout="constrained")
    axes = figure.subplots(len(pairs), 2, squeeze=False)
    for row, (one, other, score) in enumerate(pairs):
        for column, clip_id in enumerate((one, other)):
            decibel = spectrogram_db(read_audio(paths[clip_id], sample_rate_hz=16_000).samples)
            axes[row][column].imshow(
                decibel, origin="lower", aspect="auto", cmap=COLOR_MAP, extent=(0, DURATION_S, 0, len(decibel))
            )
            axes[row][column].set_title(
                f"{clip_id} ({labels[clip_id]})" + (f"   score {score:.4f}" if column == 0 else ""), fontsize=9
            )
            axes[row][column].set_yticks([])
            axes[row][column].set_ylabel("mel band" if column == 0 else "", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("seconds", fontsize=8)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=80)
    Image.open(target).convert("RGB").quantize(128).save(target, optimize=True)  # a third of the size, no visible loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results/esc10"))
    parser.add_argument("--figures", type=Path, default=Path("docs/results/images"))
    options = parser.parse_args()
    manifests = write_folds(options.source, options.output)
    facts = {row["clip_id"]: row for row in csv.DictReader((options.source / "esc10.csv").open(encoding="utf-8"))}
    recording = {clip_id: row["freesound_id"] for clip_id, row in facts.items()}
    category = {clip_id: row["category"] for clip_id, row in facts.items()}
    paths = {clip_id: str((options.source / row["path"]).resolve()) for clip_id, row in facts.items()}

    # a low tau lists every pair that is at all close, so that their order can be studied
    listed = deduplicate(
        open_corpus(manifests["all"]),
        output=options.output / "pairs",
        config=DedupConfig(duration_s=DURATION_S, tau=0.47),
        overwrite=True,
    )
    pairs = [(row["first_id"], row["second_id"], row["score"]) for row in listed.pairs().to_pylist()]
    dedup = deduplicate(
        open_corpus(manifests["all"]),
        output=options.output / "dedup",
        config=DedupConfig(duration_s=DURATION_S),
        overwrite=True,
        finish=write_report,
    )
    audited = audit(
        open_corpus(manifests["1"]),
        open_corpus(manifests["2"]),
        open_corpus(manifests["3"]),
        output=options.output / "audit",
        config=AuditConfig(duration_s=DURATION_S),
        overwrite=True,
        finish=write_report,
    )
    print("dedup:", dedup.card["counts"], dedup.card["threshold"]["explanation"])
    print("audit:", audited.card["counts"], audited.card["threshold"]["explanation"])
    rows = [{"pairs listed": len(pairs), **take_ranks(pairs, recording, category)}]
    n_same = sum(recording[a] == recording[b] for i, a in enumerate(facts) for b in list(facts)[i + 1 :])
    print(f"pairs of takes in the corpus: {n_same} of {240 * 239 // 2}")
    print_table(rows)
    best = [
        {
            "rank": number,
            "first": one,
            "second": other,
            "score": f"{score:.4f}",
            "category": category[one] if category[one] == category[other] else f"{category[one]} / {category[other]}",
            "same recording": "yes" if recording[one] == recording[other] else "no",
            "waveform correlation": f"{waveform_correlation(paths[one], paths[other]):.2f}",
        }
        for number, (one, other, score) in enumerate(pairs[:20], 1)
    ]
    print_table(best)
    matches = [row for row in audited.matches().to_pylist() if row["rank"] == 1]
    matches.sort(key=lambda row: -row["score"])
    print_table(
        [
            {
                "fold 1": row["query_id"],
                "fold 2": row["reference_id"],
                "score": f"{row['score']:.4f}",
                "category": f"{row['query_caption']} / {row['reference_caption']}",
            }
            for row in matches[:5]
        ]
    )
    draw_pairs(pairs[:8], paths, category, options.figures / "esc10-pairs.png")
    histogram = histogram_svg(
        [
            ("fold 1 to fold 2", QUERY_COLOR, audited.queries()["score"].drop_null().to_numpy()),
            ("fold 2 to fold 2", REFERENCE_COLOR, audited.training()["score"].to_numpy()),
        ],
        tau=audited.card["threshold"]["tau"],
        unit="clips",
    )
    (options.figures / "esc10-histogram.svg").write_text(histogram, "utf-8")
    write_json(options.output / "esc10.json", rows + best, {"source": "ESC-10 folds 1-3", "duration_s": DURATION_S})


if __name__ == "__main__":
    main()
