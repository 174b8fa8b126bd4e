"""The models of a long-tail study, and what each of them generates."""

from __future__ import annotations

from dataclasses import dataclass

from .config import LongtailConfig

SETS, DUPLICATES, STORES, MODELS, MADE, INDEXES, AUDITS, EVALUATED = (
    "sets",
    "duplicates",
    "datastores",
    "models",
    "generated",
    "indexes",
    "audits",
    "evaluated",
)
THROUGH_CODEC, SENSITIVITY = "through-codec", "sensitivity"
TRAINING, COPIES, HELD_OUT, OPEN, PROMPTS, WITH_COPIES, ALL = (
    f"{name}.jsonl"
    for name in (
        "training",
        "copies",
        "held-out",
        "open",
        "prompts",
        "with-copies",
        "references",
    )
)
PLAIN, AUDIO, BOTH, ID = "plain", "audio", "both", "id"
THRESHOLDS = "-thresholds"  # of the folder beside an index
NAMES = {
    PLAIN: "no pairs",
    AUDIO: "sounds alone",
    BOTH: "sounds and captions",
    ID: "sounds and captions, duplicates allowed",
}
"""What each kind of model is called in figures and tables. Of all but the last, a clip's duplicates are never its pairs."""
ON_TRAINING, ON_HELD_OUT = "training", "held-out"
EXCLUDING, BY_ID, OPENED = "excluding-duplicates", "excluding-id", "open"
"""Datastores: of the training clips, without what is a duplicate of the target, or without the target alone; and with clips of
the unseen classes besides."""


@dataclass(frozen=True)
class Run:
    """Clips that one model makes from one list of prompts in one way.

    Attributes
    ----------
    seed, model
        Of the model; ``plain``, ``audio``, ``both`` or ``id``.
    prompts
        ``training`` captions, or ``held-out`` ones.
    k
        Pairs of each prompt; 0: none.
    store
        The datastore that they are of; None: none.
    swapped
        Whether each prompt is shown the pairs of another one.
    guided
        Whether guidance leads away from the pairs.
    closed
        Whether the datastore has no clips of unseen classes.
    """

    seed: int
    model: str
    prompts: str
    k: int = 0
    store: str | None = None
    swapped: bool = False
    guided: bool = False
    closed: bool = False

    @property
    def way(self) -> str:
        """All but the seed: runs of one way are pooled. Such as ``both-training-k3-swapped``."""
        parts = [self.model, self.prompts, f"k{self.k}" if self.k else ""]
        parts += ["swapped" * self.swapped, "guided" * self.guided, "closed" * self.closed]
        return "-".join(filter(None, parts))

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"s{self.seed}-{self.way}"

    @property
    def kind(self) -> str:
        """Of its stage."""
        return "generating guided" if self.guided else "generating with pairs" if self.k else "generating"


def runs_of(config: LongtailConfig, seed: int) -> list[Run]:
    """Everything that is generated for a seed; what needs another run's pairs comes behind it.

    Examples
    --------
    >>> from auscult.studies.longtail.config import StudyRetrieval
    >>> config = LongtailConfig(retrieval=StudyRetrieval(k=(1, 3)))
    >>> [run.way for run in runs_of(config, 0) if run.model in ("plain", "audio")]
    ['plain-training', 'plain-held-out', 'audio-training-k3', 'audio-held-out-k3']
    >>> [run.way for run in runs_of(config, 0) if run.model == "id"][-3:]
    ['id-training-k3-swapped', 'id-training-k3-guided', 'id-held-out-k3']
    """
    shown, many = config.retrieval.shown, config.retrieval.k
    runs = [Run(seed, PLAIN, ON_TRAINING), Run(seed, PLAIN, ON_HELD_OUT)]
    runs += [Run(seed, AUDIO, ON_TRAINING, shown, EXCLUDING), Run(seed, AUDIO, ON_HELD_OUT, shown, OPENED)]
    for model, store in ((BOTH, EXCLUDING), (ID, BY_ID)):
        runs += [Run(seed, model, ON_TRAINING, k, store) for k in many]
        runs += [
            Run(seed, model, ON_TRAINING, shown, store, swapped=True),
            Run(seed, model, ON_TRAINING, shown, store, guided=True),
        ]
        runs += [Run(seed, model, ON_HELD_OUT, k, OPENED) for k in (many if model == BOTH else (shown,))]
    runs.append(Run(seed, BOTH, ON_HELD_OUT, shown, OPENED, guided=True))
    if config.tail.unseen:
        runs.append(Run(seed, BOTH, ON_HELD_OUT, shown, EXCLUDING, closed=True))
    return runs


def clips_made(config: LongtailConfig, run: Run) -> int:
    """How many clips a run makes.

    Examples
    --------
    >>> config = LongtailConfig()
    >>> [clips_made(config, run) for run in (Run(0, "plain", "training"), Run(0, "plain", "held-out"))]
    [59, 60]
    """
    if run.prompts == ON_TRAINING:
        return config.prompts
    return config.tail.held_out * config.classes


def model_name(seed: int, model: str) -> str:
    """Of a model's folder."""
    return f"s{seed}-{model}"
