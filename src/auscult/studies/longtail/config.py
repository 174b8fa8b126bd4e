"""The configuration of the long-tail study: tables of a TOML file over a preset."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...generation.datastore.encoding import HASHED, Key
from ...generation.training_config import NO_ENCODER, TrainConfig
from ...metrics.longtail import check_edges
from ...sounds import FAMILIES
from ..config import StudyAudits, StudyData, StudyRates, StudySampling, StudyTraining, check_sampling, load_study_config
from .takes import Takes

GAP = "gap"
CLOSEST = 2  # pairs that no target may see at least: itself and its duplicate


@dataclass(frozen=True)
class StudyTail:
    """``[tail]``: the imbalanced training set, and what is held out of it.

    Attributes
    ----------
    counts
        Training clips of each class, falling; which class has which is drawn by the seed, among those that have so many. 0:
        the class is unseen.
    held_out
        Clips of each class whose captions are the prompts that quality is measured with, of recordings that nothing else is
        of.
    open
        Clips of each unseen class that the open datastore holds.
    copies
        Share of the training clips that is there a second time as a near-duplicate: another file, at another level, with faint
        noise, under an id of its own and the same caption.
    tau
        Threshold by which ``auscult dedup`` looks for duplicates, or ``"gap"``; the audit paper's is 0.5025.
    alike
        Recordings that are one sound under two names, such as ``["2-28314 = 2-30322"]``: what ``[data] group`` finds in a clip
        id, or the id itself. They count as one recording.
    edges
        Of the bins of training frequency, as ``auscult evaluate`` has them: unseen classes are a bin of their own.
    """

    counts: tuple[int, ...] = (14, 12, 10, 8, 6, 4, 3, 2, 0, 0)
    held_out: int = 6
    open: int = 6
    copies: float = 0.2
    tau: float | str = "gap"
    alike: tuple[str, ...] = ()
    edges: tuple[int, ...] = (1, 4, 10)

    def __post_init__(self) -> None:
        if len(self.counts) < 2 or min(self.counts) < 0 or list(self.counts) != sorted(self.counts, reverse=True):
            raise ValueError(f"[tail] counts should be two or more falling numbers, of each class one, got {list(self.counts)}")
        if sum(self.counts) < 2:
            raise ValueError(f"[tail] counts leave {sum(self.counts)} clips to train on; give more")
        if min(self.held_out, self.open) < 1:
            raise ValueError(f"[tail] held_out and open should be at least 1, got {self.held_out} and {self.open}")
        if not 0 <= self.copies < 1:
            raise ValueError(f"[tail] copies should be in [0, 1), got {self.copies}")
        if isinstance(self.tau, str) and self.tau != GAP:
            raise ValueError(f"[tail] tau should be a number such as 0.5025, or {GAP!r}, got {self.tau!r}")
        check_edges(self.edges)
        Takes(alike=self.alike)

    @property
    def copied(self) -> int:
        """How many training clips are there a second time."""
        return max(1, round(self.copies * sum(self.counts))) if self.copies else 0

    @property
    def trained_on(self) -> int:
        """Training clips, near-duplicates among them."""
        return sum(self.counts) + self.copied

    @property
    def unseen(self) -> int:
        """How many classes no training clip is of."""
        return sum(not count for count in self.counts)


@dataclass(frozen=True)
class StudyRetrieval:
    """``[retrieval]``: the pairs that models are trained and sampled beside.

    Attributes
    ----------
    k
        Numbers of pairs at sampling, rising.
    shown
        The one of them at which everything else is compared: kinds of pairs, the swap, guidance.
    counts
        Numbers of pairs that training draws among, so that one model serves every k.
    neighbors
        The nearest pairs that training draws these from.
    key, model
        Of the datastores, as ``auscult datastore`` takes them.
    """

    k: tuple[int, ...] = (1, 3, 5, 10)
    shown: int = 3
    counts: tuple[int, ...] = (0, 1, 3, 5)
    neighbors: int = 50
    key: Key = "text"
    model: str = "hashed"

    def __post_init__(self) -> None:
        if min(self.k, default=0) < 1 or list(self.k) != sorted(set(self.k)):
            raise ValueError(f"[retrieval] k should be rising numbers from 1, got {list(self.k)}")
        if self.shown not in self.k:
            raise ValueError(f"[retrieval] shown should be one of k {list(self.k)}, got {self.shown}")
        if max(self.counts, default=0) < 1:
            raise ValueError(f"[retrieval] counts should hold a number of pairs from 1, got {list(self.counts)}")
        if self.model == HASHED and self.key != "text":
            raise ValueError(
                f"[retrieval] model = {HASHED!r} makes vectors of captions only, so it makes no key {self.key!r}; take "
                "key = 'text', or a CLAP model"
            )


@dataclass(frozen=True)
class StudyGuidance:
    """``[guidance]``: anti-memorization guidance with each prompt's own pairs as what must not come out.

    Attributes
    ----------
    despecification, deduplication, dissimilarity
        See :class:`~auscult.guidance.amg.AmgConfig`, whose defaults these are (its module needs torch).
    threshold_low, threshold_high
        Of the same; None: measured on all clips that could be shown, those of the open datastore among them.
    """

    despecification: float = 1.0
    deduplication: float = 4.0
    dissimilarity: float = 3.0
    threshold_low: float | None = None
    threshold_high: float | None = None

    def __post_init__(self) -> None:
        low, high = self.threshold_low, self.threshold_high
        if low is not None and high is not None and low > high:
            raise ValueError(f"[guidance] threshold_low {low:g} should not be above threshold_high {high:g}")


@dataclass(frozen=True)
class StudyQuality:
    """``[quality]``: metrics of clips from held-out captions, beside the share that sounds like its class.

    Attributes
    ----------
    clap
        Folder or hub name of a CLAP model for CLAP scores, another one than pairs are found by; None: there are none.
    frechet
        Whether each clip's Fréchet distance from the real held-out clips is measured, on levels of mel bands.
    """

    clap: str | None = None
    frechet: bool = True


@dataclass(frozen=True)
class LongtailRates(StudyRates):
    """``[rates]``: amounts per second, for the plan, until they are measured; 0: not known."""

    training_with_pairs: float = 0.0
    generating_with_pairs: float = 0.0
    generating_guided: float = 0.0
    evaluating: float = 0.0


@dataclass(frozen=True)
class LongtailConfig:
    """A long-tail study. See the classes of its tables.

    Attributes
    ----------
    seeds
        Of each, the ranks of the classes, the clips, the weights and the noise are others.
    threads, device
        Of training and sampling.
    """

    preset: str | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    threads: int | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    data: StudyData = field(default_factory=StudyData)
    tail: StudyTail = field(default_factory=StudyTail)
    retrieval: StudyRetrieval = field(default_factory=StudyRetrieval)
    train: StudyTraining = field(default_factory=StudyTraining)
    generate: StudySampling = field(default_factory=StudySampling)
    guidance: StudyGuidance = field(default_factory=StudyGuidance)
    audits: StudyAudits = field(default_factory=StudyAudits)
    quality: StudyQuality = field(default_factory=StudyQuality)
    rates: LongtailRates = field(default_factory=LongtailRates)

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds should be one or more numbers from 0, each once, got {list(self.seeds)}")
        can = self.tail.trained_on - CLOSEST
        if (most := max(*self.retrieval.k, *self.retrieval.counts)) > can:
            raise ValueError(
                f"[retrieval] asks for {most} pairs, and a datastore of the {self.tail.trained_on} training clips of "
                f"[tail] counts gives a clip {can} at most, without itself and its duplicate; "
                "lower k and counts, or train on more"
            )
        asked = self.guidance
        if self.generate.guidance_scale <= 1 and asked.despecification + asked.deduplication + asked.dissimilarity > 0:
            raise ValueError(
                f"[generate] guidance_scale {self.generate.guidance_scale:g} samples without classifier-free guidance, which "
                "anti-memorization guidance changes; take one above 1, or strengths of 0 in [guidance]"
            )

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self.tail.counts)

    @property
    def takes(self) -> Takes:
        """Which clips are of one recording."""
        return Takes(self.data.group, self.tail.alike)

    @property
    def source_clips(self) -> int:
        """Clips that are synthesized where there are none: enough for every class at the first rank."""
        of_class = max(self.tail.counts) + self.tail.held_out + self.tail.open
        return of_class * max(self.classes, len(FAMILIES))

    @property
    def prompts(self) -> int:
        """Training captions that each model generates from."""
        there = sum(self.tail.counts)
        return min(there, self.generate.clips) if self.generate.clips else there


def load_longtail_config(
    path: str | Path | None = None, *, preset: str | None = None, source: str | None = None
) -> LongtailConfig:
    """Read a configuration, see :func:`~auscult.studies.config.load_study_config`.

    Examples
    --------
    >>> config = load_longtail_config(preset="mini-cpu", source="clips.csv")
    >>> config.retrieval.k, config.train.preset
    ((1, 3, 5, 10), 'tiny-cpu')
    """
    config = load_study_config(LongtailConfig, "longtail", path, preset=preset, source=source)
    for kind in ("plain", "audio", "both"):  # which refuses unknown settings before anything is made
        check_sampling(train_config(config, kind, "clips.csv", None if kind == "plain" else "store", 0), config.generate)
    return config


def train_config(
    config: LongtailConfig, model: str, manifest: str | Path, datastore: str | Path | None, seed: int
) -> TrainConfig:
    """How a model is trained: beside the pairs of a datastore, of which ``audio`` hears the sounds alone; or without any.

    The gate of the codec's reconstructions is off where training clips have near-duplicates, which it cannot tell apart.
    """
    more = ["gates.reconstruction=0.0"] if config.tail.copied else []
    if datastore is not None:
        counts, neighbors = list(config.retrieval.counts), config.retrieval.neighbors
        more += [f"retrieval.datastore={datastore}", f"retrieval.counts={counts}", f"retrieval.neighbors={neighbors}"]
    if model == "audio":
        more.append(f"encoders.caption={NO_ENCODER}")
    return config.train.config(manifest, seed, device=config.device, threads=config.threads, more=more)
