"""The settings of an audit, and which threshold they ask for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .calibration import Threshold, fdr_threshold, fixed_threshold, gap_threshold, matched_threshold
from .folders import read_card
from .identity import recording_pattern
from .search import DoubleArray
from .search.approximate import check_method
from .similarity import BACKGROUND_K, BETA

DEFAULT_FDR = 0.1


@dataclass(frozen=True)
class AuditConfig:
    """Settings of an audit. Those of the normalization are the audit paper's; it read tau off its histograms.

    Attributes
    ----------
    descriptor
        Name of the descriptor; None: that of the given stores, or ``contrast``.
    duration_s
        Window of the descriptor in seconds; None: its default (10.242 for ``mel``).
    k
        Matches listed for each generated clip.
    beta, background_k
        Weight and number of neighbors of the background normalization (not for ``contrast``, which standardizes).
    tau
        A number (the paper: 0.5005 for ``mel`` at 10.242 s against 1,000 AudioSet clips); ``"fdr"``, from p-values;
        ``"gap"``, read off the two histograms; ``"match:AUDIT"``, to flag as many clips as another audit did. None: ``fdr``
        for ``contrast`` or if `fdr` is given, else ``gap``.
    fdr
        Share of false alarms that is tolerated among what is flagged; None: 0.1 where the rule is ``fdr``.
    candidates
        ``contrast``: training clips that are looked at closely for each generated clip.
    background_sample
        Without a background set, this many training clips take its place (``contrast`` takes 64 in either case).
    training_sample
        Training clips whose own top-1 scores make the training-to-training histogram (not for ``contrast``).
    null_sample
        ``contrast``: as many training clips are scored against the others, for that histogram and for p-values; with
        null clips given, for the histogram only, and at most 250.
    seed
        Of the samples.
    search
        Of vectors (not for ``contrast``): ``exact``, or faiss's approximate ``ivf`` or ``hnsw``, whose lists may be
        incomplete; what they find is then measured and reported.
    group
        Regular expression on clip ids whose first group names the recording. Where training or null clips are scored, none is
        compared with clips of its own recording, so that takes of one recording do not pass for chance; null clips may then
        be training clips, too, and those that score far above all others are taken for duplicates and left out.
    """

    descriptor: str | None = None
    duration_s: float | None = None
    k: int = 5
    beta: float = BETA
    background_k: int = BACKGROUND_K
    tau: str | float | None = None
    fdr: float | None = None
    candidates: int = 100
    background_sample: int = 1000
    training_sample: int = 5000
    null_sample: int = 1000
    seed: int = 0
    search: str = "exact"
    group: str | None = None

    def __post_init__(self) -> None:
        check_method(self.search)
        if self.group is not None:
            recording_pattern(self.group)
        if self.k < 1 or self.background_k < 1:
            raise ValueError(f"k and background_k should be at least 1, got {self.k} and {self.background_k}")
        for name in ("background_sample", "training_sample", "null_sample", "candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} should be at least 1, got {getattr(self, name)}")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta should be from 0 to 1, got {self.beta}")
        if self.fdr is not None and not 0 < self.fdr < 1:
            raise ValueError(f"fdr should be between 0 and 1, got {self.fdr}")
        if self.tau is not None and parse_tau(self.tau)[0] != "fdr" and self.fdr is not None:
            raise ValueError(f"fdr = {self.fdr} says where to cut, and so does tau = {self.tau}; give one of them")


def level(config: AuditConfig) -> float:
    """Share of false alarms that is tolerated among what is flagged by p-values."""
    return DEFAULT_FDR if config.fdr is None else config.fdr


def parse_tau(tau: str | float) -> tuple[str, float | str | None]:
    """``("gap", None)``, ``("fdr", None)``, ``("fixed", number)`` or ``("match", folder)``.

    Raises
    ------
    ValueError
        It is none of these.
    """
    if isinstance(tau, str):
        if tau in {"gap", "fdr"}:
            return tau, None
        if tau.startswith("match:"):
            return "match", tau.removeprefix("match:")
    try:
        return "fixed", fixed_threshold(float(tau)).tau
    except ValueError:
        raise ValueError(f"tau should be a number, 'fdr', 'gap' or 'match:AUDIT', got {tau!r}") from None


def choose_threshold(
    config: AuditConfig, default: str, generated: DoubleArray, training: DoubleArray, null: DoubleArray
) -> Threshold:
    """The threshold that the configuration asks for, from top-1 scores (NaN: none)."""
    asked = "fdr" if config.tau is None and config.fdr is not None else config.tau
    rule, value = parse_tau(default if asked is None else asked)
    heard = generated[np.isfinite(generated)]
    if rule == "fixed":
        return fixed_threshold(float(value or 0.0))
    if rule == "match":
        other = read_card(Path(str(value)), "audit")
        return matched_threshold(heard, min(int(other["counts"]["flagged"]), len(heard)))
    if rule == "fdr":
        return fdr_threshold(generated, null, level(config))
    return gap_threshold(heard, training[np.isfinite(training)])
