"""Training beside retrieved pairs: what is shown, what never is, what is dropped, and what a validation tells of it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import soundfile as sf

pytest.importorskip("diffusers")

import torch

from auscult.corpus import open_corpus
from auscult.errors import OutputFolderError
from auscult.generation.conditioning import Conditions
from auscult.generation.data_gates import captions_gate
from auscult.generation.datastore import Datastore, DatastoreConfig, build_datastore
from auscult.generation.encoding import load_encoders
from auscult.generation.feed import Feed
from auscult.generation.mel import MelSpec
from auscult.generation.mixing import mixed_caption
from auscult.generation.neighbors import pair_tokens
from auscult.generation.objective import target
from auscult.generation.pipeline import RetrievalAugmentedAudioPipeline
from auscult.generation.preparing import prepare
from auscult.generation.prompts import PromptRow
from auscult.generation.retrieving import load_look_up
from auscult.generation.training import train
from auscult.generation.training_config import load_train_config
from auscult.generation.training_gates import reach_gate
from auscult.generation.training_parts import check_parts, parts_of
from auscult.generation.training_step import Denoiser, batch_losses, noise_schedule, train_step
from auscult.generation.validation import condition_gates, level_losses, variants_of
from auscult.generation.weights import weights_digest
from tiny_encoders import T5, save_ast, save_t5

RATE = 16_000
KINDS = ("dog barks", "rain falls", "engine hums")
TINY = (
    "data.duration_s=1.28",
    "denoiser.channels=[8, 16]",
    "denoiser.heads=[1, 2]",
    "denoiser.attention=[false, true]",
    "optimizer.batch=6",
    "optimizer.steps=2",
    "logging.sheet_prompts=1",
    "logging.sheet_steps=2",
    "gates.overfit=0",
    "gates.reconstruction=0.5",
    "gates.conditions=false",
    "retrieval.counts=[0, 1, 3]",
    "threads=1",
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 clips, 4 takes of each of 3 kinds; clip 3 has the very audio of clip 0, and 4 and 5 have one caption."""
    folder = tmp_path_factory.mktemp("pairs")
    lines = ["clip_id,path,caption"]
    for number in range(12):
        rng = np.random.default_rng(0 if number == 3 else number)
        time_s = np.arange(round(1.28 * RATE)) / RATE
        tone = np.sin(2 * np.pi * (200 + 400 * (number // 4)) * rng.uniform(0.8, 1.2) * time_s)
        sf.write(folder / f"{number}.wav", 0.4 * tone + 0.05 * rng.standard_normal(len(time_s)), RATE)
        take = 4 if number == 5 else number
        lines.append(f"c{number},{number}.wav,{KINDS[number // 4]} take {take}")
    (folder / "clips.csv").write_text("\n".join(lines) + "\n")
    config = DatastoreConfig(key="text", model="hashed")
    build_datastore(open_corpus(folder / "clips.csv"), output=folder / "store", config=config)
    return folder


def _config(corpus: Path, *settings: str) -> Any:
    given = (f"data.train={corpus / 'clips.csv'}", f"retrieval.datastore={corpus / 'store'}", *TINY, *settings)
    return load_train_config(preset="tiny-cpu", settings=given)


@pytest.fixture(scope="module")
def prepared(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return prepare(_config(corpus, "mixing.share=0.5", "data.validation_share=0.2"), tmp_path_factory.mktemp("run"))


def test_a_clip_is_never_shown_itself_its_duplicate_its_caption_or_what_is_held_out(prepared: Any) -> None:
    feed: Feed = prepared.feed
    assert feed.neighbors is not None
    ids = feed.neighbors.store.pairs["clip_id"].to_pylist()
    held = {feed.clips.ids[row] for row in prepared.held_out}
    shown = {name: {ids[row] for row in rows} for name, rows in feed.neighbors.rows.items()}
    assert held and all(not held & names for names in shown.values())
    assert all(name not in names for name, names in shown.items())
    assert "c3" not in shown["c0"] and "c0" not in shown["c3"]  # one audio
    assert "c5" not in shown["c4"] and "c4" not in shown["c5"]  # one caption
    assert all(len(names) >= 12 - len(held) - 2 for names in shown.values())  # and nothing else is withheld


def test_a_mixture_retrieves_by_its_joint_caption_without_its_own_halves(prepared: Any) -> None:
    neighbors = prepared.feed.neighbors
    ids = neighbors.store.pairs["clip_id"].to_pylist()
    captions = dict(zip(prepared.feed.clips.ids, prepared.feed.clips.captions, strict=True))
    held = {prepared.feed.clips.ids[row] for row in prepared.held_out}
    halves = (captions["c1"], captions["c9"])
    found = [ids[row] for row in neighbors.of_mixture(mixed_caption(*halves), ("c1", "c9"), halves)]
    assert found and not {"c1", "c9"} & set(found) and not held & set(found)
    kinds = {int(name[1:]) // 4 for name in found[:2]}
    assert kinds <= {0, 2}  # dogs and engines, for the caption has the words of both; no rain
    assert not {"c0", "c3"} & {ids[row] for row in neighbors.of_mixture("x and y", ("c0", "c9"), (captions["c0"], halves[1]))}


@pytest.mark.parametrize("known", [(), ("c2",)], ids=["not in the datastore", "there under another caption"])
def test_no_half_of_a_mixture_retrieves_its_caption_whatever_the_datastore_holds(prepared: Any, known: tuple[str, ...]) -> None:
    """Sources that are other audio, with captions that pairs of the datastore happen to have."""
    neighbors = replace(prepared.feed.neighbors, own={"x": known, "y": ()}, hidden=frozenset())
    ids, captions = (neighbors.store.pairs[name].to_pylist() for name in ("clip_id", "caption"))
    halves = (captions[ids.index("c1")].upper(), captions[ids.index("c9")] + ".")
    shown = {ids[row] for row in neighbors.of_mixture(mixed_caption(*halves), ("x", "y"), halves)}
    assert shown == set(ids) - {"c1", "c9", *known}


def test_a_datastore_built_anew_is_another_part(prepared: Any, corpus: Path, tmp_path: Path) -> None:
    rows = (corpus / "clips.csv").read_text().replace("rain falls take 7", "rain is falling take 7")
    (tmp_path / "clips.csv").write_text(rows)
    config, clips = DatastoreConfig(key="text", model="hashed"), open_corpus(tmp_path / "clips.csv", audio_root=str(corpus))
    build_datastore(clips, output=tmp_path / "store", config=config)
    feed: Feed = prepared.feed
    encoders, codec = feed.encoders.digests(), weights_digest(feed.codec)
    there, rebuilt = (
        parts_of(feed.clips, prepared.held_out, feed.spec, codec, encoders, replace(feed.neighbors, store=store))  # type: ignore[type-var]
        for store in (Datastore.load(corpus / "store"), Datastore.load(tmp_path / "store"))
    )
    assert there == prepared.parts and there != rebuilt
    with pytest.raises(OutputFolderError, match=r"\(datastore: it was built anew or changed\); put back"):
        check_parts(tmp_path, 6, there, rebuilt)


@pytest.mark.parametrize("key", ["text", "audio"])
def test_clips_are_known_by_their_audio_where_the_datastore_names_them_otherwise(
    corpus: Path, tmp_path: Path, key: Literal["text", "audio"]
) -> None:
    """The same files under other ids and captions, and one that is not there: all but that one are withheld as before."""
    rows = [f"{corpus / f'{number}.wav'},{KINDS[number // 4]} is heard {number}" for number in range(12) if number != 11]
    (tmp_path / "clips.csv").write_text("\n".join(["path,caption", *rows]) + "\n")
    config = DatastoreConfig(key=key, model="hashed" if key == "text" else "mel", duration_s=None if key == "text" else 1.0)
    build_datastore(open_corpus(tmp_path / "clips.csv"), output=tmp_path / "store", config=config)
    given = [f"retrieval.datastore={tmp_path / 'store'}", "data.validation_share=0.2", f"mixing.share={0.5 * (key == 'text')}"]
    if key == "audio":  # which cannot find anything for a clip that is not there
        (tmp_path / "known.csv").write_text("\n".join((corpus / "clips.csv").read_text().splitlines()[:12]) + "\n")
        given += [f"data.train={tmp_path / 'known.csv'}", f"data.audio_root={corpus}"]
    ready = prepare(_config(corpus, *given), tmp_path / "run")
    neighbors, clips = ready.feed.neighbors, ready.feed.clips
    assert neighbors is not None
    files = [Path(path).stem for path in neighbors.store.pairs["path"].to_pylist()]
    held = {clips.ids[row][1:] for row in ready.held_out}
    assert held and not set(clips.ids) & set(neighbors.store.pairs["clip_id"].to_pylist())
    for clip_id, shown in neighbors.rows.items():
        there = {files[row] for row in shown}
        assert len(there) >= 11 - len(held) - 2 and not there & {clip_id[1:], *held}
        assert clip_id not in ("c0", "c3") or not {"0", "3"} & there  # one audio
    if key == "text":
        assert not {"1", "9", *held} & {files[row] for row in neighbors.of_mixture("dog and engine", ("c1", "c9"), ("", ""))}
    gate = next(gate for gate in ready.gates if gate.name == "pairs")
    assert gate.value == (key == "text") and gate.passed
    assert ("(c11)" in gate.message) == (key == "text")


def test_a_batch_holds_what_its_plan_says(prepared: Any) -> None:
    from auscult.generation.batches import plan_batch

    feed: Feed = prepared.feed
    counts, seen = feed.counts, {"all": 0, "references": 0, "prompt": 0, "none": 0}
    for step in range(25):
        batch = feed.batch(step)
        again = feed.batch(step)
        assert batch.noise.equal(again.noise) and batch.conditions.text_tokens.equal(again.conditions.text_tokens)  # type: ignore[union-attr]
        plan = plan_batch(
            len(feed.rows), 6, 0, step, dropout=feed.config.dropout, mixtures=3, counts=counts, neighbors=feed.reach
        )
        assert len(batch) == 9 and batch.latents.shape[1:] == feed.latents.shape[1:]
        assert batch.latents[:6].equal(feed.latents[feed.rows[plan.rows[:6]]])
        length = feed.neighbors.audio.values.shape[1]  # type: ignore[union-attr]
        audio = batch.conditions.audio_mask.sum(1) - 1  # type: ignore[union-attr]  # without the null token
        lists = [len(feed.neighbors.rows[feed.clips.ids[row]]) for row in feed.rows[plan.rows[:6]]]  # type: ignore[union-attr]
        expected = np.where(plan.drop_references[:6], 0, np.minimum(plan.counts[:6], lists)) * length
        assert (audio[:6].numpy() == expected).all() and not audio.numpy()[plan.drop_references].any()
        nothing = feed.nothing.prompt[0]  # type: ignore[index]
        for row in range(6):
            dropped = plan.drop_prompt[row]
            wanted = nothing if dropped else feed.prompts.prompt[feed.rows[plan.rows[row]]]  # type: ignore[index]
            assert batch.conditions.prompt[row].equal(wanted)  # type: ignore[index]
        for prompt, references in zip(plan.drop_prompt, plan.drop_references, strict=True):
            seen[{(1, 1): "all", (0, 1): "references", (1, 0): "prompt", (0, 0): "none"}[int(prompt), int(references)]] += 1
    assert all(seen.values()), seen


def _knows(feed: Feed, abar: torch.Tensor) -> Any:
    """A predictor that finds the clip of the prompt it is given and answers exactly."""

    def knows(noisy: torch.Tensor, at: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        similarity = conditions.prompt @ feed.prompts.prompt.T  # type: ignore[operator, union-attr]
        latents = feed.latents[similarity.argmax(1)]
        kept = abar[at].reshape(-1, 1, 1, 1)
        noise = (noisy - kept.sqrt() * latents) / (1 - kept).sqrt()
        return target(latents, noise, abar, at, "v_prediction")

    return knows


def test_a_model_that_knows_its_captions_passes_the_gates_and_one_that_does_not_fails(prepared: Any) -> None:
    """Planted predictors: one finds the clip of the prompt it is given and answers exactly; the other says zero."""
    feed: Feed = prepared.feed
    abar = noise_schedule(feed.config.objective).alphas_cumprod
    rows, knows = feed.rows[:4], _knows(feed, abar)
    levels = level_losses(knows, feed, rows, variants_of(feed), abar, "v_prediction")
    assert max(levels.losses["own"]) < 1e-3 < min(levels.losses["other"])  # float32, divided by noise of level 50
    assert levels.losses["own"] == levels.losses["prompt_only"] == levels.losses["swapped"]  # it does not look at references
    assert all(gate.passed for gate in condition_gates(levels))
    assert levels.by_clip.keys() == levels.losses.keys() and all(len(each) == 4 for each in levels.by_clip.values())
    assert all(np.mean(each) == pytest.approx(levels.mean(name)) for name, each in levels.by_clip.items())
    zeros = level_losses(lambda noisy, *_: torch.zeros_like(noisy), feed, rows, variants_of(feed), abar, "v_prediction")
    assert all(zeros.losses[name] == zeros.losses["zero"] for name in variants_of(feed))
    assert not any(gate.passed for gate in condition_gates(zeros))


def test_one_held_out_clip_and_held_out_clips_of_one_caption_are_held_against_clips_of_another(prepared: Any) -> None:
    feed: Feed = prepared.feed
    abar = noise_schedule(feed.config.objective).alphas_cumprod
    same = np.array([feed.clips.ids.index(name) for name in ("c4", "c5")])
    for rows in (feed.rows[-1:], same):  # not the first: the predictor takes no prompt for that
        levels = level_losses(_knows(feed, abar), feed, rows, variants_of(feed), abar, "v_prediction")
        assert all(gate.passed for gate in condition_gates(levels))
    one = replace(feed, clips=replace(feed.clips, captions=("rain",) * len(feed.clips)))
    levels = level_losses(_knows(feed, abar), one, feed.rows[:2], variants_of(one), abar, "v_prediction")
    others, none = condition_gates(levels)
    assert others.passed and others.message == "not checked: all clips have one caption"
    assert none.passed and none.limit > none.value


@pytest.mark.parametrize("family", ["retrieval", "tango"])
def test_pairs_that_do_not_reach_the_output_fail_their_gate(corpus: Path, tmp_path: Path, family: str) -> None:
    """Planted: the masks of all pairs are taken away, then the pairs themselves."""
    settings = () if family == "retrieval" else ("denoiser.preset=tiny-tango", "denoiser.channels=[16, 32]")
    config = _config(corpus, *settings)
    ready = prepare(config, tmp_path / "run")
    feed, abar = ready.feed, noise_schedule(config.objective).alphas_cumprod
    found = feed.neighbors
    assert found is not None and reach_gate(ready.unet, feed, config, abar, "cpu").passed

    def masked(tokens: Any) -> Any:
        return None if tokens is None else tokens._replace(mask=torch.zeros_like(tokens.mask))

    none = replace(found, rows={name: rows[:0] for name, rows in found.rows.items()})
    away = replace(found, text=masked(found.text), audio=masked(found.audio))
    for broken, reason in ((away, "of pairs has no influence"), (none, "no clip has a pair in the datastore")):
        gate = reach_gate(ready.unet, replace(feed, neighbors=broken), config, abar, "cpu")
        assert not gate.passed and gate.value == 0 and reason in gate.message
    name = feed.clips.ids[feed.rows[0]]  # one clip without a pair is no fault of the others
    some = replace(found, rows={**found.rows, name: found.rows[name][:0]})
    assert reach_gate(ready.unet, replace(feed, neighbors=some), config, abar, "cpu").passed


@pytest.mark.parametrize("gain", [1.0, 0.02])
def test_a_pair_is_the_same_in_training_and_in_sampling_however_loud_it_is(corpus: Path, tmp_path: Path, gain: float) -> None:
    """A spectrogram transformer hears levels; tokens of a quiet file that were only leveled in training would be another's."""
    for number in range(3):
        wave = sf.read(corpus / f"{number}.wav", dtype="float32")[0]
        sf.write(tmp_path / f"{number}.wav", gain * wave, RATE, subtype="FLOAT")
    rows = [f"c{number},{number}.wav,{KINDS[number]}" for number in range(3)]
    (tmp_path / "clips.csv").write_text("\n".join(["clip_id,path,caption", *rows]) + "\n")
    config = DatastoreConfig(key="text", model="hashed")
    store = build_datastore(open_corpus(tmp_path / "clips.csv"), output=tmp_path / "store", config=config)
    encoders = load_encoders(audio=str(save_ast(tmp_path / "ast", frequency_stride=10, time_stride=10)))
    _, trained = pair_tokens(store, encoders, MelSpec(), round(1.28 * RATE), tmp_path / "cache", encoders.digests(), hears=True)
    looked = load_look_up(tmp_path / "store", 1, rate_hz=RATE, duration_s=1.28)([PromptRow(0, "dog")])[0]
    sampled = encoders.audio_tokens([wave for _, wave in looked.pairs], RATE)
    row = store.row(looked.ids[0])
    length = sampled.values.shape[1]
    assert trained is not None and sampled.values[0].equal(trained.values[row, :length])
    loud = encoders.audio_tokens([sf.read(corpus / f"{row}.wav", dtype="float32")[0]], RATE)
    torch.testing.assert_close(sampled.values, loud.values, rtol=0, atol=1e-4)


def test_training_beside_pairs_end_to_end(corpus: Path, tmp_path: Path) -> None:
    result = train(_config(corpus, "mixing.share=0.34", "optimizer.accumulation=2"), tmp_path / "run")
    assert set(result.validation.losses) == {"own", "prompt_only", "other", "swapped", "null", "zero"}  # type: ignore[union-attr]
    assert result.card["counts"]["pairs"] == 12
    reach = next(gate for gate in result.gates if gate.name == "conditions reach the output")
    assert all(name in reach.message for name in ("prompt", "text_tokens of pairs", "audio_tokens of pairs"))
    assert reach.value > 0
    sheets = tmp_path / "run" / "sheets"
    assert (sheets / "step-000002.png").is_file() and len(list((sheets / "step-000002").glob("*.flac"))) == 2
    pipe = RetrievalAugmentedAudioPipeline.from_pretrained(result.pipeline)
    pipe.set_progress_bar_config(disable=True)
    known = pipe.config.retrieval  # which `auscult generate` asks whether pairs may be given
    assert known["key"] == "text" and "hashed" in known["encoders"]["text"] and max(known["counts"]) == 3
    pair = ("dog barks take 0", sf.read(corpus / "0.wav", dtype="float32")[0])
    with_pair, without = (
        pipe(["dog barks take 1"], references=given, num_inference_steps=2, seeds=[3], output_type="latent").audios
        for given in ([[pair]], None)
    )
    assert not with_pair.equal(without)


@pytest.mark.parametrize("off", ["caption", "audio"])
def test_a_model_takes_of_pairs_only_what_it_has_an_encoder_for(corpus: Path, tmp_path: Path, off: str) -> None:
    result = train(_config(corpus, f"encoders.{off}=none", "logging.sheet_prompts=0"), tmp_path / "run")
    pipe = RetrievalAugmentedAudioPipeline.from_pretrained(result.pipeline)
    pipe.set_progress_bar_config(disable=True)
    waves = [sf.read(corpus / f"{number}.wav", dtype="float32")[0] for number in (0, 8)]
    pairs = {"base": (KINDS[0], waves[0]), "caption": (KINDS[2], waves[0]), "audio": (KINDS[0], waves[1])}
    made = {
        name: pipe([KINDS[1]], references=[[pair]], num_inference_steps=2, seeds=[3], output_type="latent").audios
        for name, pair in pairs.items()
    }
    assert {name: made[name].equal(made["base"]) for name in ("caption", "audio")} == {
        "caption": off == "caption",
        "audio": off == "audio",
    }
    with pytest.raises(ValueError, match="of retrieved pairs nothing would be left"):
        _config(corpus, "encoders.caption=none", "encoders.audio=none")


@pytest.mark.parametrize(
    "settings", [(), ("denoiser.preset=tiny-tango", "denoiser.channels=[16, 32]")], ids=["retrieval", "tango"]
)
def test_computing_activations_again_changes_no_gradient(corpus: Path, tmp_path: Path, settings: tuple[str, ...]) -> None:
    from auscult.generation.recomputing import recompute_activations

    ready = prepare(_config(corpus, *settings), tmp_path / "run")
    abar, batch = noise_schedule(ready.feed.config.objective).alphas_cumprod, ready.feed.batch(0)
    again = copy.deepcopy(ready.unet)
    recompute_activations(again)
    for unet in (ready.unet.train(), again.train()):
        batch_losses(Denoiser(unet), batch, abar, ready.feed.config.objective)[0].mean().backward()
    for one, other in zip(ready.unet.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_tango_reads_captions_of_pairs_behind_its_prompt(corpus: Path, tmp_path: Path) -> None:
    tango = ("denoiser.preset=tiny-tango", "denoiser.channels=[16, 32]", "mixing.share=0.5", "logging.sheet_prompts=0")
    config = _config(corpus, *tango)
    result = train(config, tmp_path / "run")
    feed = prepare(config, tmp_path / "run").feed
    batch, words = feed.batch(0), feed.prompts.text_tokens.shape[1]  # type: ignore[union-attr]
    assert batch.conditions.prompt is None and batch.conditions.audio_tokens is None
    assert batch.conditions.text_tokens.shape[1] == words + 3 * words  # type: ignore[union-attr]  # room for 3 pairs
    pipe = RetrievalAugmentedAudioPipeline.from_pretrained(result.pipeline)
    assert pipe.prompt_encoder is None and pipe.audio_encoder is None


def test_another_model_in_the_same_folder_is_not_taken_for_the_first(corpus: Path, tmp_path: Path) -> None:
    import transformers

    folder = save_t5(tmp_path / "t5")
    settings = (
        "denoiser.preset=tiny-tango",
        "denoiser.channels=[16, 32]",
        f"encoders.caption={folder}",
        "retrieval.counts=[0]",
    )
    prompts: list[Any] = []
    parts: list[dict[str, str]] = []
    for change in (False, False, True):
        if change:
            torch.manual_seed(9)
            transformers.T5EncoderModel(transformers.T5Config(**T5)).save_pretrained(folder)
        ready = prepare(_config(corpus, *settings), tmp_path / "run")
        feed = ready.feed
        parts.append(ready.parts)
        feed.encoders.captions(["rain"])  # a tokenizer keeps what it was last asked for
        prompts.append(feed.prompts.text_tokens)
        fresh = feed.encoders.captions([feed.clips.captions[0]]).values[0]
        torch.testing.assert_close(feed.prompts.text_tokens[0], fresh, rtol=0, atol=1e-5)  # type: ignore[index]
    assert prompts[0].equal(prompts[1]) and not prompts[0].equal(prompts[2])
    assert len(list((tmp_path / "run" / "cache").glob("captions-*"))) == 2
    assert parts[0] == parts[1] and [name for name in parts[0] if parts[0][name] != parts[2][name]] == ["caption encoder"]


def test_captions_that_are_cut_are_counted(corpus: Path, tmp_path: Path) -> None:
    """An encoder that reads 8 words: one caption of 12 is too long, and so are all mixtures."""
    lines = (corpus / "clips.csv").read_text().splitlines()
    lines[2] += " in the yard behind the old house"
    (tmp_path / "clips.csv").write_text("\n".join(lines) + "\n")
    tango = ("denoiser.preset=tiny-tango", "denoiser.channels=[16, 32]", "mixing.share=0.5", f"data.audio_root={corpus}")
    ready = prepare(_config(corpus, f"data.train={tmp_path / 'clips.csv'}", *tango), tmp_path / "run")
    assert ready.feed.prompts.text_tokens.shape[1] == 32  # type: ignore[union-attr]  # longer than mixtures of these
    gate = next(gate for gate in ready.gates if gate.name == "captions")
    assert gate.value == 0 and "0.0% of mixtures" in gate.message and "shorten" not in gate.message
    clips, rows = ready.feed.clips, np.arange(12)
    short = load_encoders(None, "hashed", None, hashed_tokens=9)
    gate = captions_gate(short, clips, rows, clips.captions, mixes=True, seed=0)
    assert gate.value == 1 and gate.passed and "1 of 12 captions" in gate.message and "(c1)" in gate.message
    assert " 100.0% of mixtures" in gate.message and "1 of 12 captions of retrieved pairs" in gate.message
    assert "shorten" in gate.message
    assert "mixtures" not in captions_gate(short, clips, rows, None, mixes=False, seed=0).message


def test_accumulation_changes_no_gradient(corpus: Path, tmp_path: Path) -> None:
    """Plain descent of rate 1 moves weights by the gradient itself; nine samples are cut into 9, and into 3, 3 and 3."""
    from accelerate import Accelerator

    ready = prepare(_config(corpus, "mixing.share=0.5"), tmp_path / "run")
    abar, batch = noise_schedule(ready.feed.config.objective).alphas_cumprod, ready.feed.batch(0)
    moved, told = [], []
    for accumulation in (1, 3):
        config = _config(corpus, "mixing.share=0.5", f"optimizer.accumulation={accumulation}", "optimizer.clip=1e9")
        unet = copy.deepcopy(ready.unet).train()
        optimizer = torch.optim.SGD(unet.parameters(), lr=1.0)
        told.append(train_step(Accelerator(cpu=True), Denoiser(unet), optimizer, batch, abar, config, frozenset(), 0))
        pairs = zip(unet.parameters(), ready.unet.parameters(), strict=True)
        moved.append(torch.cat([(after - before).detach().flatten() for after, before in pairs]))
    largest = float(moved[0].abs().max())
    assert largest > 1e-3 and float((moved[0] - moved[1]).abs().max()) < 1e-3 * largest
    assert float(moved[0].norm()) == pytest.approx(told[0]["norm"], rel=1e-3)  # what clipping is told is this gradient
    for name in ("loss", "error", "norm"):
        assert told[0][name] == pytest.approx(told[1][name], rel=1e-4)


def test_more_pairs_than_the_datastore_holds(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"asks for 20 pairs, and .*store holds 12"):
        train(_config(corpus, "retrieval.counts=[0, 20]"), tmp_path / "run")
