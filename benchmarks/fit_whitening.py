"""Make `src/auscult/descriptors/whitening.npz`: the covariance that contrast has over recordings and synthesized sounds.

    python benchmarks/fit_whitening.py ../shared/data/esc10 [-o whitening.npz]

Half of the uploaders of ESC-10 (by a hash of their name) and 60 synthesized clips of a seed that no benchmark uses. Prints how
far the result is from the matrix that ships. The page of the copy-detection benchmark says how many of these uploaders occur
there. The other fitted numbers are `fit_spread.py`'s.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soxr

from auscult.descriptors import contrast
from copy_detection.dataset import RATE, SYNTHETIC, Sound, read_esc10, synthetic_sounds

SEED = 991


def in_development_half(source: str) -> bool:
    """True for about half of all sources, whatever the machine."""
    return hashlib.md5(source.encode(), usedforsecurity=False).digest()[0] % 2 == 0


def fitted_on(sounds: Iterable[Sound]) -> list[Sound]:
    """Those of the sounds that are recordings of the development half."""
    return [s for s in sounds if not s.source.startswith(SYNTHETIC) and in_development_half(s.source)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("esc10", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("whitening.npz"))
    options = parser.parse_args()
    recordings = fitted_on(read_esc10(options.esc10))
    sounds = recordings + synthetic_sounds(60, seed=SEED)
    heard = [soxr.resample(s.audio, RATE, contrast.SAMPLE_RATE).astype(np.float32) for s in sounds]
    fitted = contrast.fit_whitening([contrast.contrast(contrast.describe(audio)) for audio in heard]).matrix
    shipped = contrast.load_whitening().matrix  # before it may be overwritten
    np.savez(options.output, matrix=fitted)
    difference = np.linalg.norm(fitted - shipped) / np.linalg.norm(shipped)
    uploaders = len({s.source for s in recordings})
    print(f"{options.output}: from {len(recordings)} recordings of {uploaders} uploaders and 60 synthesized clips")
    print(f"relative difference from the one that ships: {difference:.2e}")


if __name__ == "__main__":
    main()
