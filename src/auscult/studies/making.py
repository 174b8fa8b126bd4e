"""How stages that all studies have are made: sources, models, clips, audits. All go on where they were stopped."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import soundfile as sf

from ..audio import read_audio
from ..audit import AuditConfig, audit
from ..corpus import Clip, Corpus, open_corpus
from ..descriptors.base import load_descriptor
from ..errors import CorpusError
from ..folders import Progress, write_card, write_text
from ..identity import recordings
from ..indexing import index
from ..inputs import Source, is_store
from ..pretrained.clap import CLAP
from ..pretrained.locating import locate
from ..store import DescriptorStore
from .config import MATCH, POOL, SOUNDS, StudyAudits, StudyData, StudySampling, StudyTraining
from .sets import COPY, of_other_recordings, read_manifest, read_pool, write_manifest, write_sounds
from .stages import Stage

if TYPE_CHECKING:
    from ..generation.training_config import TrainConfig

SOURCE, DESCRIBED = "source", "described"  # folders of a study
CLIPS = "clips.jsonl"
MADE_MANIFEST = "manifest.jsonl"
ROLES = ("background", "null")
MAYBE_COPY = f"(?:#{COPY}-[0-9]+)?$"
ANY_ID = f"^(.+?){MAYBE_COPY}"  # as a group: each clip is a recording, which repeated clips are of, too


def audit_group(data: StudyData) -> str | None:
    r"""The expression by which audits know a clip's recording, which finds that of a repeated clip (``x-A#copy-2``), too.

    Examples
    --------
    >>> import re
    >>> group = audit_group(StudyData(group=r"^(\d+)-[A-Z]$"))
    >>> [re.search(group, name)[1] for name in ("17-A", "17-A#copy-2")]
    ['17', '17']
    """
    if data.null != POOL:
        return None
    if data.group is None:
        return ANY_ID
    ended = re.search(r"(?<!\\)(?:\\\\)*\$$", data.group)
    return f"{data.group[:-1]}{MAYBE_COPY}" if ended else data.group


def check_group(data: StudyData, clip_ids: Sequence[str]) -> None:
    """Refuse an expression that names another recording for a clip that is there a second time, before anything is made.

    Raises
    ------
    ValueError
        It does so, or does not fit an id.
    """
    group = audit_group(data)
    if group is None:
        return
    again = [f"{clip_id}#{COPY}-2" for clip_id in clip_ids]
    for clip_id, one, other in zip(clip_ids, recordings(clip_ids, group), recordings(again, group), strict=True):
        if one != other:
            raise ValueError(
                f"[data] group = {data.group!r} finds recording {one!r} in {clip_id!r} and {other!r} in {clip_id}#{COPY}-2, as "
                f"a study calls it where it is there a second time; let the group end before #, such as ([^#]+)"
            )


class StudyConfig(Protocol):
    """The tables that all studies have."""

    @property
    def data(self) -> StudyData: ...
    @property
    def train(self) -> StudyTraining: ...
    @property
    def generate(self) -> StudySampling: ...
    @property
    def audits(self) -> StudyAudits: ...
    @property
    def threads(self) -> int | None: ...
    @property
    def device(self) -> str: ...


def make_source(config: StudyConfig, most: int, place: Path, progress: Progress) -> None:
    """The clips that everything is drawn from, written down once; ``most`` are synthesized where there are none."""
    place.mkdir(exist_ok=True)
    data, duration_s = config.data, config.train.duration_s
    counts = {"background": config.audits.background_clips, "null": config.audits.null_clips}
    if data.source == SOUNDS:
        pool = write_sounds(place / SOUNDS, most, 0, duration_s)
    else:
        pool = read_pool(data.source, audio_root=data.audio_root, encoding=data.encoding)
    check_group(data, [clip.clip_id for clip in pool])
    write_manifest(place / CLIPS, pool)
    for number, role in enumerate(ROLES, 1):
        if getattr(data, role) == SOUNDS:
            write_manifest(place / f"{role}.jsonl", write_sounds(place / role, counts[role], number, duration_s))
        progress(number, len(ROLES), "preparing clips")
    write_card(place, "clips of a study", {"source": data.source, "clips": len(pool)})


def clips_of(source: str) -> Corpus:
    """A corpus that is no store.

    Raises
    ------
    CorpusError
        It is one: a study compares by several descriptors.
    """
    if is_store(source):
        raise CorpusError(f"{source}: is a store of one descriptor, and a study compares by several; give the clips themselves")
    return open_corpus(source)


def given(data: StudyData, role: str, folder: Path) -> Corpus:
    """Background or null clips of all audits."""
    named = getattr(data, role)
    if named == POOL:
        return open_corpus(folder / SOURCE / CLIPS)
    return open_corpus(folder / SOURCE / f"{role}.jsonl") if named == SOUNDS else clips_of(named)


def check_roles(data: StudyData, *models: str | None) -> None:
    """Refuse background or null that cannot be used, and CLAP models that are not there, before anything is made."""
    for name in models:
        if name is not None:
            locate(name, CLAP)
    if data.background == POOL:
        raise ValueError("[data] background = 'pool' would be the training clips themselves; name others, or 'sounds'")
    for role in ROLES:
        if getattr(data, role) not in (SOUNDS, POOL):
            clips_of(getattr(data, role))


def train_model(config: TrainConfig, place: Path, progress: Progress) -> None:
    """A model; what only a run that goes on needs is deleted, for there are many models."""
    from ..generation.training import train

    train(config, place, progress=progress)
    for name in ("cache", "checkpoints"):
        shutil.rmtree(place / name, ignore_errors=True)


def generate_clips(
    config: StudyConfig, model: Path | str, prompts: Path, seed: int, place: Path, progress: Progress, **settings: Any
) -> None:
    """Clips of a model from prompts; ``settings`` are further ones of ``generate`` (``datastore=...``)."""
    from ..generation.generating import GenerateConfig, generate

    sampling = config.generate
    changes = {key: settings.pop(key) for key in ("k", "duration_s") if key in settings}
    chosen = GenerateConfig(steps=sampling.steps, guidance_scale=sampling.guidance_scale, seed=seed, **changes)
    with torch_threads(config.threads):
        generate(
            str(model),
            prompts,
            place,
            config=chosen,
            device=config.device,
            batch_size=sampling.batch,
            offline=True,
            progress=progress,
            **settings,
        )


def through_codec(config: StudyConfig, model: Path | str, clips: Sequence[Clip], place: Path, progress: Progress) -> None:
    """What a model's codec makes of real clips, as a folder of sounds: about as faithful as its copies can be."""
    import torch

    from ..generation.pipelines import load_pipeline, locate_pipeline
    from ..guidance.codecs import LatentCodec

    with torch_threads(config.threads), torch.no_grad():
        pipe = load_pipeline(locate_pipeline(str(model), offline=True), device=config.device, dtype="float32")
        codec = LatentCodec.of(pipe)
        length = round(config.train.duration_s / codec.frame_s) * codec.samples_per_frame
        rows, audio = [], place / "audio"
        audio.mkdir(parents=True, exist_ok=True)
        for number, clip in enumerate(clips):
            sound = read_audio(clip.path, sample_rate_hz=codec.rate_hz, start_s=clip.start_s, duration_s=clip.duration_s)
            wave = torch.zeros(1, length)
            wave[0, : len(sound.samples)] = torch.from_numpy(sound.samples[:length])
            copy = codec.decode(codec.encode(wave.to(pipe.device))).float().cpu().numpy()[0]
            path = audio / f"{number:04d}.flac"
            sf.write(path, (copy / max(1.0, float(np.abs(copy).max()))).T, codec.rate_hz)
            rows.append({"clip_id": f"{number:04d}", "path": str(path.absolute()), "reference": clip.clip_id})
            progress(number + 1, len(clips), "clips through the codec")
    write_text(place / MADE_MANIFEST, "".join(json.dumps(row) + "\n" for row in rows))
    write_card(place, "clips of a codec", {"clips": len(rows)})


@contextmanager
def torch_threads(wanted: int | None) -> Iterator[None]:
    """So many threads meanwhile; None: as many as there are already."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- audits -----------------------------------------------------------------------------------------------------------


def mel_window_s(config: StudyConfig) -> float:
    """Window of mel: by default as long as the model's sounds."""
    return config.audits.duration_s or config.train.duration_s


def clips_or_none(manifest: Path) -> Corpus | None:
    """The clips of a manifest; None where it has none."""
    return open_corpus(manifest) if read_manifest(manifest) else None


def describe_role(config: StudyConfig, name: str, role: str, place: Path, progress: Progress) -> None:
    """Descriptors of background or null clips, once for all audits."""
    describe(config, name, given(config.data, role, place.parents[1]), place, progress)


def describe(config: StudyConfig, name: str, source: Corpus, place: Path, progress: Progress) -> None:
    """Descriptors of clips that several audits compare with, once for all of them."""
    parameters: dict[str, Any] = {}
    if name == "mel":
        parameters = {"duration_s": mel_window_s(config)}
    elif name == "clap" and config.audits.clap:
        parameters = {"model": config.audits.clap}
    index(source, place, descriptor=load_descriptor(name, **parameters), progress=progress)


def described(folder: Path, name: str, role: str) -> DescriptorStore:
    """What :func:`describe_role` has made."""
    return DescriptorStore.open(folder / DESCRIBED / f"{name}-{role}")


def role_stages(config: StudyConfig) -> list[Stage]:
    """The stages that describe background and null."""
    return [
        Stage(f"{DESCRIBED}/{name}-{role}", "preparing", 1, "sets", partial(describe_role, config, name, role))
        for name in config.audits.compared_by
        for role in ROLES
    ]


def audit_clips(
    config: StudyConfig, name: str, made: Source, training: Source, folder: Path, place: Path, progress: Progress
) -> None:
    """An audit by one descriptor, with its report; background and null are those of the study in ``folder``.

    Where the null clips are the pool, none is compared with training clips of its own recording.
    """
    from ..report import write_report

    tau = config.audits.taus().get(name)
    if isinstance(tau, str):  # as many as another descriptor, which has audited the same clips
        tau = f"{MATCH}{place.with_name(place.name.removesuffix(name) + tau.removeprefix(MATCH))}"
    settings = AuditConfig(
        descriptor=name,
        duration_s=mel_window_s(config) if name == "mel" else None,
        tau="fdr" if tau is None else tau,
        fdr=config.audits.fdr if tau is None else None,
        group=audit_group(config.data),
    )
    background, null = (described(folder, name, role) for role in ROLES)
    finish: Callable[[Path], object] = partial(write_report, progress=progress)
    audit(made, training, background, null=null, output=place, config=settings, progress=progress, finish=finish)


def audit_control(
    config: StudyConfig, name: str, made: Path, own: Path, theirs: Path, folder: Path, place: Path, progress: Progress
) -> None:
    """Clips of a model against training clips of another, less recordings of its own: how often are no copies flagged?

    Parameters
    ----------
    name
        Of the descriptor.
    made
        Manifest of the clips.
    own, theirs
        Manifests of the training clips of the model that made them, and of the other.
    folder
        Of the study.
    place
        Of the audit; where nothing is left to compare with, a file that says so.
    """
    unseen = of_other_recordings(read_manifest(theirs), read_manifest(own), config.data.group)
    if not unseen:
        write_text(place, json.dumps({"unseen": 0}))
        return
    manifest = place.with_name(f"{place.name}.jsonl")
    write_manifest(manifest, unseen)
    audit_clips(config, name, open_corpus(made), open_corpus(manifest), folder, place, progress)
