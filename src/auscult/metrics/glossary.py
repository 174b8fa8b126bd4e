"""What each metric of generated audio is called, which side of it is better, and what it cannot see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Count = Literal["clips", "frames", "frames a clip"]

BRACKETS = {
    "floor": "real audio, as halves of the reference against each other (by IS, CLAP score and KL the reference itself, so "
    "that KL has 0)",
    "noise": "white noise in place of the generated clips",
    "silence": "silence in place of the generated clips",
    "shuffled": "the generated clips, each with the pair of another one",
}
"""The brackets of a score, in the order of the tables, and what each is."""


@dataclass(frozen=True)
class Metric:
    """How a metric is shown.

    Attributes
    ----------
    name
        For headings.
    higher_is_better
        Which side is the better one.
    explanation
        One sentence: what it is, from what features, and what it cannot see.
    percent
        Whether the value is a share that readers want in percent.
    memorization
        Whether it tells of replication rather than of quality.
    changes_with
        Number of the generated set that it changes with whatever they sound like, so that sets of unequal size cannot be
        compared; None: it does not.
    spread
        Whether its interval is a spread about a value that is biased by the number of clips
        (:func:`~auscult.metrics.intervals.spread_interval`), and need not hold what endless clips would score.
    """

    name: str
    higher_is_better: bool
    explanation: str
    percent: bool = False
    memorization: bool = False
    changes_with: Count | None = None
    spread: bool = False


METRICS = {
    "fad": Metric(
        "FAD",
        False,
        "Frechet distance of two Gaussians fitted to the frames of all generated and all reference clips; it cannot see "
        "what is not in means and covariances, it falls as clips are added, and it does not know which prompt a clip "
        "answers.",
        changes_with="frames",
        spread=True,
    ),
    "fad_infinity": Metric(
        "FAD, infinite set",
        False,
        "The same distance, extrapolated to endlessly many generated clips from halves and quarters, which takes out most of "
        "what few of them add; it leans on a straight line, keeps what a small reference adds, and stays blind to prompts.",
        changes_with="clips",
        spread=True,
    ),
    "fad_per_clip": Metric(
        "FAD per clip",
        False,
        "Frechet distance of the frames of a single clip to those of the reference, averaged over clips; it finds odd "
        "clips, and punishes a clip for holding one sound only, as most good ones do.",
        changes_with="frames a clip",
    ),
    "fd": Metric(
        "FD",
        False,
        "Frechet distance of two Gaussians fitted to the features of all generated and all reference clips; it cannot see "
        "what is not in means and covariances, it falls as clips are added, and it does not know which prompt a clip "
        "answers.",
        changes_with="frames",
        spread=True,
    ),
    "fd_infinity": Metric(
        "FD, infinite set",
        False,
        "The Frechet distance extrapolated to endlessly many generated clips from halves and quarters, which takes out most of "
        "what few of them add; it leans on a straight line, keeps what a small reference adds, and stays blind to prompts.",
        changes_with="clips",
        spread=True,
    ),
    "fd_per_clip": Metric(
        "FD per clip",
        False,
        "Frechet distance of the features of a single clip to those of the reference, averaged over clips; it finds odd "
        "clips, and punishes a clip for holding one sound only, as most good ones do.",
        changes_with="frames a clip",
    ),
    "kad": Metric(
        "KAD",
        False,
        "Unbiased squared maximum mean discrepancy of the features, times 100, with a kernel as wide as the reference is "
        "spread; it fits no Gaussian and may fall below 0 by chance, but sees no prompts and nothing far finer than its "
        "kernel.",
    ),
    "kl": Metric(
        "KL",
        False,
        "Divergence of a classifier's softmax of the paired reference from that of the generated clip, averaged over "
        "pairs; it sees which sounds are there but not how they sound, and where several are, softmax lets one hide the "
        "others.",
    ),
    "kl_reversed": Metric(
        "KL, reversed",
        False,
        "The same divergence, in the other published direction (of the generated clip from the reference); values of the "
        "two directions cannot be compared.",
    ),
    "kl_sigmoid": Metric(
        "KL, sigmoid",
        False,
        "Divergence of the classes one by one, each as present or absent, of the paired reference from the generated "
        "clip; it sees several sounds in a clip, but not how they sound.",
    ),
    "is": Metric(
        "IS",
        True,
        "Inception score: how sure a classifier is of each clip, and how many classes the clips cover together; it never "
        "looks at the reference, so clear sounds of the wrong kind score well.",
        changes_with="clips",
        spread=True,
    ),
    "clap_score": Metric(
        "CLAP score",
        True,
        "Cosine of the embeddings of a clip and of its prompt, averaged over clips; it depends on the checkpoint, knows "
        "little of order and number, and favors systems that were trained or ranked by the same model.",
    ),
    "precision": Metric(
        "precision",
        True,
        "Share of generated clips that lie within the reach of a reference clip among its neighbors; it says nothing of "
        "variety: one good clip, repeated, has precision 1.",
        changes_with="clips",
    ),
    "recall": Metric(
        "recall",
        True,
        "Share of reference clips that lie within the reach of a generated clip among its neighbors; outliers among the "
        "generated clips reach far, and raise it.",
        changes_with="clips",
    ),
    "density": Metric(
        "density",
        True,
        "How many reference neighborhoods a generated clip lies in, relative to how many it should; more robust to "
        "outliers than precision, may exceed 1, and as blind to variety.",
        changes_with="clips",
    ),
    "coverage": Metric(
        "coverage",
        True,
        "Share of reference clips in whose neighborhood at least one generated clip lies; it sees missing kinds of sound,"
        " but a copy of the reference covers it all.",
        changes_with="clips",
    ),
    "mean_similarity": Metric(
        "mean audit score",
        False,
        "The audit's score of each generated clip with its closest training clip, averaged over clips; it rises with any "
        "likeness, so a drop need not mean fewer copies.",
        memorization=True,
    ),
    "similarity_95": Metric(
        "95th percentile of audit scores",
        False,
        "The audit's score that one generated clip in twenty exceeds; it sees the upper tail, but not a handful of copies"
        " in thousands of clips.",
        memorization=True,
    ),
    "share_over_tau": Metric(
        "share flagged",
        False,
        "Share of the compared generated clips that the audit flags: their score is over tau, or their samples are those "
        "of a training clip; a flag is a suspicion that nobody has listened to.",
        percent=True,
        memorization=True,
    ),
    "verified_rate": Metric(
        "verified replications",
        False,
        "Share of generated clips that people found to replicate a training clip; it knows only of pairs that the audit "
        "found and that were reviewed.",
        percent=True,
        memorization=True,
    ),
}
"""By the ``metric`` of a score."""


def metric_of(name: str) -> Metric:
    """What is known of a metric; of an unknown one, its name."""
    return METRICS.get(name) or Metric(name.replace("_", " "), False, "")
