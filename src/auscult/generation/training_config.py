"""The configuration of a training run: tables of a TOML file, over a preset that fills in what is not said."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from ..configuration import make_config, merged
from ..identity import recording_pattern
from .batches import Dropout
from .schedules import check_steps

NO_ENCODER = "none"
PRESETS = ("tiny-cpu", "small-gpu", "paper-s", "paper-l", "tango")


@dataclass(frozen=True)
class DataConfig:
    """``[data]``: what is trained on.

    Attributes
    ----------
    train
        Corpus with captions: a folder, manifest, archive or data set, as every command takes it.
    validation
        Corpus held out; without it ``validation_share`` of the training corpus is.
    validation_share
        Share of the groups of clips held out where no corpus is named.
    group
        Regular expression on the clip id whose first group names the recording that a clip was cut from: clips of one
        recording are never on both sides. Without it only clips of equal audio are kept together.
    audio_root, encoding
        Of manifests.
    duration_s
        Length of what the model makes. Longer clips are cut at their end, shorter ones padded with silence.
    max_unreadable
        Refuse to train if more clips than this cannot be used (all are named).
    """

    train: str = ""
    validation: str | None = None
    validation_share: float = 0.1
    group: str | None = None
    audio_root: str | None = None
    encoding: str = "utf-8"
    duration_s: float = 5.12
    max_unreadable: int = 0

    def __post_init__(self) -> None:
        if self.duration_s <= 0:
            raise ValueError(f"[data] duration_s should be positive, got {self.duration_s}")
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"[data] validation_share should be in [0, 1), got {self.validation_share}")
        if self.group is not None:  # here, or hours of reading would come first
            recording_pattern(self.group)


@dataclass(frozen=True)
class MelConfig:
    """``[mel]``: the log-mel spectrogram, which has to be the vocoder's."""

    sample_rate_hz: int = 16000
    n_fft: int = 1024
    hop_length: int = 160
    n_mels: int = 64
    f_min: float = 0.0
    f_max: float = 8000.0
    padding: Literal["reflect", "tacotron"] = "reflect"


@dataclass(frozen=True)
class CodecConfig:
    """``[codec]``: what makes latents of spectrograms.

    Attributes
    ----------
    kind
        ``patch-pca``: principal components of patches, fitted in a second; a preset of ``AutoencoderKL`` that is trained
        first; or ``pretrained``, the autoencoder of ``source``.
    source
        Folder or hub name of a pipeline (its ``vae`` is taken) or of an autoencoder.
    vocoder
        ``griffin-lim`` (preview quality), or folder or hub name of a pipeline with a ``vocoder`` or of a HiFi-GAN.
    steps, batch, learning_rate
        Of the training of an autoencoder.
    """

    kind: Literal["patch-pca", "cpu4", "cpu8", "gpu", "pretrained"] = "patch-pca"
    source: str | None = None
    vocoder: str = "griffin-lim"
    patch: int = 8
    components: int = 8
    steps: int = 600
    batch: int = 8
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        if self.kind == "pretrained" and not self.source:
            raise ValueError("[codec] kind = 'pretrained' needs source = FOLDER or hub name")


@dataclass(frozen=True)
class EncodersConfig:
    """``[encoders]``: the frozen condition encoders: ``hashed`` and ``mel`` need no weights; otherwise folder or hub name.

    ``caption`` or ``audio`` may be ``none``: of retrieved pairs, the model then hears the sounds alone, or reads the captions
    alone, in training and in sampling.
    """

    prompt: str = "hashed"
    caption: str = "hashed"
    audio: str = "mel"

    def __post_init__(self) -> None:
        if self.caption == self.audio == NO_ENCODER:
            raise ValueError("[encoders] caption and audio are both 'none': of retrieved pairs nothing would be left")
        if self.prompt == NO_ENCODER:
            raise ValueError("[encoders] prompt cannot be 'none': a model without prompts generates nothing that was asked for")


@dataclass(frozen=True)
class RetrievalConfig:
    """``[retrieval]``: pairs of caption and audio that a clip is made beside.

    Attributes
    ----------
    datastore
        Folder made by ``auscult datastore``; None trains without retrieval.
    counts
        Numbers of pairs, of which each sample draws one, so that one model serves every k.
    neighbors
        The pairs are drawn among so many nearest, anew at each step: a fixed list would be a key to the memorized clip.
    """

    datastore: str | None = None
    counts: tuple[int, ...] = (0, 1, 3, 5)
    neighbors: int = 50

    def __post_init__(self) -> None:
        if not self.counts or min(self.counts) < 0:
            raise ValueError(f"[retrieval] counts should be one or more numbers from 0, got {list(self.counts)}")
        if self.neighbors < max(self.counts):
            raise ValueError(f"[retrieval] neighbors is {self.neighbors}, of which {max(self.counts)} cannot be drawn")


@dataclass(frozen=True)
class DenoiserSection:
    """``[denoiser]``: the network: ``preset`` names its family and sizes (see ``denoiser.PRESETS``), the rest changes them."""

    preset: str = "tiny"
    channels: tuple[int, ...] | None = None
    layers: int | None = None
    heads: tuple[int, ...] | None = None
    attention: tuple[bool, ...] | None = None


@dataclass(frozen=True)
class ObjectiveConfig:
    """``[objective]``: noise schedule, what is predicted, and how noise levels are weighed."""

    prediction: Literal["epsilon", "v_prediction"] = "v_prediction"
    timesteps: int = 1000
    beta_start: float = 0.0015
    beta_end: float = 0.0195
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "scaled_linear"
    snr_gamma: float = 5.0
    snr_mode: Literal["correct", "tango", "none"] = "correct"


@dataclass(frozen=True)
class MixingConfig:
    """``[mixing]``: mixtures of two clips added to each batch, as a share of its clips; ``ratio`` is heard of the first."""

    share: float = 0.0
    ratio: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 4 or not 0 < self.ratio < 1:
            raise ValueError(f"[mixing] share should be in [0, 4] and ratio in (0, 1), got {self.share} and {self.ratio}")


@dataclass(frozen=True)
class OptimizerConfig:
    """``[optimizer]``: AdamW and the length of the run.

    ``batch`` is what one optimizer step sees, all processes and ``accumulation`` micro-batches together.
    """

    steps: int = 2000
    batch: int = 16
    accumulation: int = 1
    learning_rate: float = 1e-3
    warmup: int = 50
    decay: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float = 1e-2
    betas: tuple[float, ...] = (0.9, 0.999)
    clip: float = 1.0
    ema: float = 0.995
    precision: Literal["no", "bf16", "fp16"] = "no"
    gradient_checkpointing: bool = False
    freeze_steps: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.accumulation) < 1:
            raise ValueError("[optimizer] steps, batch and accumulation should be at least 1")
        if self.batch % self.accumulation:
            raise ValueError(f"[optimizer] batch = {self.batch} cannot be cut into {self.accumulation} equal micro-batches")
        if len(self.betas) != 2 or not 0 <= self.ema < 1:
            raise ValueError("[optimizer] betas should be two numbers, ema in [0, 1)")


@dataclass(frozen=True)
class StartConfig:
    """``[start]``: weights to start from.

    ``from`` is a pipeline folder of ours, or folder or hub name (``OWNER/NAME[@REVISION]``) of AudioLDM, AudioLDM 2 or TANGO;
    its codec, vocoder and encoders are taken too. While ``optimizer.freeze_steps`` last, only what the start did not bring is
    trained.
    ``heads``: attention heads of AudioLDM's denoiser, per level, instead of those its configuration names.
    """

    source: str | None = field(default=None, metadata={"key": "from"})
    heads: tuple[int, ...] | None = None


@dataclass(frozen=True)
class LoggingConfig:
    """``[logging]``: steps between lines of the log, validations, checkpoints, and sheets of samples (0: at the end only)."""

    every: int = 10
    validate_every: int = 200
    checkpoint_every: int = 200
    checkpoints_kept: int = 2
    sheet_every: int = 500
    sheet_prompts: int = 4
    sheet_steps: int = 25
    guidance_scale: float = 3.0
    validation_clips: int = 64
    tensorboard: bool = False

    def __post_init__(self) -> None:
        # a mean over no clip is not a number, and the gate at the end is of such means
        at_least_one = ("every", "validate_every", "checkpoint_every", "checkpoints_kept", "validation_clips")
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise ValueError(f"[logging] {name} should be at least 1, got {getattr(self, name)}")
        if min(self.sheet_every, self.sheet_prompts) < 0:
            raise ValueError("[logging] sheet_every and sheet_prompts should not be negative")


@dataclass(frozen=True)
class GatesConfig:
    """``[gates]``: checks that stop a run with a reason; switch one off only if you know why it fails.

    Attributes
    ----------
    reconstruction
        The codec's reconstruction of a clip finds its own clip among all: least share of clips.
    first_loss
        Largest distance of the loss at step 0 from 1, where training starts from nothing; 0 switches the gate off.
    start
        On clips of the corpus, a public checkpoint's denoiser predicts what its files say.
    overfit
        Largest loss after ``overfit_steps`` on one small batch; 0 switches the gate off.
    conditions
        At the end, the loss with a clip's own condition has to be less than with another's and with none, held out.
    """

    reconstruction: float = 0.99
    first_loss: float = 0.5
    start: bool = True
    overfit: float = 0.05
    overfit_steps: int = 300
    conditions: bool = True


@dataclass(frozen=True)
class TrainConfig:
    """A training run. See the classes of its tables."""

    preset: str | None = None
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    data: DataConfig = field(default_factory=DataConfig)
    mel: MelConfig = field(default_factory=MelConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    encoders: EncodersConfig = field(default_factory=EncodersConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    denoiser: DenoiserSection = field(default_factory=DenoiserSection)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    dropout: Dropout = field(default_factory=Dropout)
    mixing: MixingConfig = field(default_factory=MixingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    start: StartConfig = field(default_factory=StartConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    gates: GatesConfig = field(default_factory=GatesConfig)

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads should be at least 1, got {self.threads}; leave it out for torch's own number")


def preset_values(name: str) -> dict[str, Any]:
    """The tables of a preset.

    Raises
    ------
    ValueError
        There is no preset of this name.

    Examples
    --------
    >>> preset_values("tiny-cpu")["objective"]["prediction"]
    'v_prediction'
    """
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
    text = resources.files(__package__).joinpath("presets", f"{name}.toml").read_text("utf-8")
    return tomllib.loads(text)


def load_train_config(
    path: str | Path | None = None, *, preset: str | None = None, settings: tuple[str, ...] = ()
) -> TrainConfig:
    """Read a training configuration: the preset, over it the file, over that single settings.

    Parameters
    ----------
    path
        TOML file; its ``preset = "NAME"`` names the preset it is laid over. None: the preset alone.
    preset
        Preset instead of the file's.
    settings
        Such as ``"optimizer.steps=100"``: as in TOML, but a plain word needs no quotes.

    Raises
    ------
    ValueError
        The file is no TOML, has an unknown key (named, with its table and the nearest known ones), or says nothing about data.

    Examples
    --------
    >>> config = load_train_config(preset="tiny-cpu", settings=("data.train=clips.csv", "optimizer.steps=10"))
    >>> config.data.train, config.optimizer.steps, config.objective.prediction
    ('clips.csv', 10, 'v_prediction')
    >>> load_train_config(preset="tiny-cpu", settings=("optimizer.step=10",))
    Traceback (most recent call last):
    ValueError: settings, [optimizer]: unknown key 'step'; did you mean steps?
    """
    where = "settings" if path is None else str(path)
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(Path(path).read_text("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not valid TOML ({error})") from error
    for setting in settings:
        values = merged(values, _setting(setting))
    name = preset or values.get("preset")
    if name is not None:
        values = merged(preset_values(str(name)), {**values, "preset": name})
    config = make_config(TrainConfig, values, where=where)
    if not config.data.train:
        raise ValueError(f"{where}: nothing to train on; name a folder or manifest with captions: [data] train = 'clips.csv'")
    if config.logging.sheet_prompts:  # or the first sheet would end the run
        levels = {"num_train_timesteps": config.objective.timesteps, "steps_offset": 1}
        check_steps("DDIMScheduler", levels, config.logging.sheet_steps, f"{where}, [logging] sheet_steps")
    return config


def _setting(text: str) -> dict[str, Any]:
    """``table.key=value`` as TOML reads it; what is no TOML value is a string."""
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise ValueError(f"expected a setting such as optimizer.steps=100, got {text!r}")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        pass
    try:
        quoted = value.strip().replace("\\", "\\\\").replace('"', '\\"')
        return tomllib.loads(f'{key} = "{quoted}"')
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"expected a setting such as optimizer.steps=100, got {text!r} ({error})") from error
