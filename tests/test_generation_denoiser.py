"""The denoiser: sizes as published, conditions that act where they should and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")

import torch
from diffusers import AudioLDM2UNet2DConditionModel

from auscult.generation.conditioning import Conditions, Tokens, choose, null_tokens, references
from auscult.generation.denoiser import DenoiserConfig, build, family_of, predict, preset, stream_widths

TINY = DenoiserConfig(
    channels=(16, 32), heads=(2, 4), attention=(False, True), norm_groups=8, prompt_dim=6, text_dim=5, audio_dim=7
)
TANGO = replace(TINY, family="tango", prompt_dim=0, audio_dim=0)


pytestmark = pytest.mark.usefixtures("one_thread")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pairs(count: int, length: int, width: int, *, real: int | None = None, seed: int = 0) -> Tokens:
    mask = torch.zeros(count, length, dtype=torch.bool)
    mask[:, : real or length] = True
    return Tokens(random(count, length, width, seed=seed), mask)


@pytest.fixture(scope="module")
def unet() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(TINY).eval()


@pytest.fixture(scope="module")
def tango() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(TANGO).eval()


@pytest.fixture
def conditions() -> Conditions:
    """Two rows: three pairs and one, with padding inside a caption."""
    streams = references(pairs(4, 3, 5, real=2, seed=1), pairs(4, 2, 7, seed=2), [3, 1])
    return replace(streams, prompt=random(2, 6, seed=3))


@torch.no_grad()
def run(unet: Any, conditions: Conditions, seed: int = 9) -> torch.Tensor:
    return predict(unet, random(len(conditions), 8, 8, 4, seed=seed), torch.tensor(500), conditions)


@pytest.mark.parametrize(
    ("name", "changes", "millions"),
    [
        ("re-audioldm-s", {}, 351.5),
        ("re-audioldm-l", {}, 771.3),
        ("tango", {}, 865.9),
        ("small", {"prompt_dim": 512, "text_dim": 1024, "audio_dim": 768}, 94.4),
        ("tiny", {}, 5.0),
        ("tiny-tango", {}, 2.9),
    ],
)
def test_presets_have_the_sizes_of_the_specification(name: str, changes: dict[str, int], millions: float) -> None:
    with torch.device("meta"):
        unet = build(preset(name, **changes))
    assert sum(parameter.numel() for parameter in unet.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_published_shapes_pass_through_the_published_network() -> None:
    with torch.device("meta"):
        unet = build(preset("re-audioldm-s"))
        conditions = Conditions(torch.empty(1, 512))
        result = predict(unet, torch.empty(1, 8, 256, 16), torch.zeros(1), conditions)
    assert result.shape == (1, 8, 256, 16)


def test_masked_tokens_have_exactly_no_influence(unet: Any, conditions: Conditions) -> None:
    assert conditions.text is not None and conditions.audio is not None
    noise = replace(
        conditions,
        text_tokens=torch.where(conditions.text.mask[:, :, None], conditions.text.values, 1e3),
        audio_tokens=torch.where(conditions.audio.mask[:, :, None], conditions.audio.values, -1e3),
    )
    assert not conditions.text.mask.all() and not conditions.audio.mask.all()
    assert torch.equal(run(unet, conditions), run(unet, noise))


def test_masked_references_are_as_if_never_given(unet: Any, conditions: Conditions) -> None:
    text, audio = conditions.text, conditions.audio
    assert text is not None and audio is not None
    alone = [torch.arange(stream.mask.shape[1]).eq(0).expand_as(stream.mask) for stream in (text, audio)]  # null tokens
    without = run(unet, replace(conditions, text_mask=alone[0], audio_mask=alone[1]))
    assert torch.allclose(without, run(unet, Conditions(conditions.prompt)), atol=1e-6)  # streams None: k = 0
    null = Conditions(conditions.prompt, *null_tokens(2, 5), *null_tokens(2, 7))
    assert torch.allclose(without, run(unet, null), atol=1e-6)
    assert not torch.allclose(without, run(unet, conditions), atol=1e-4)


def test_rows_without_references_leave_the_others_as_they_are(unet: Any, conditions: Conditions) -> None:
    none = Conditions(conditions.prompt)
    chosen = run(unet, choose(torch.tensor([True, False]), conditions, none))
    assert torch.allclose(chosen, torch.stack([run(unet, none)[0], run(unet, conditions)[1]]), atol=1e-5)


def test_room_for_more_references_changes_nothing(unet: Any) -> None:
    text, audio, prompt = pairs(3, 3, 5, seed=1), pairs(3, 2, 7, seed=2), random(2, 6, seed=3)
    tight = replace(references(text, audio, [2, 1]), prompt=prompt)
    roomy = replace(references(text, audio, [2, 1], k_max=9), prompt=prompt)
    assert roomy.text_tokens is not None and roomy.text_tokens.shape[1] == 1 + 9 * 3
    assert torch.allclose(run(unet, tight), run(unet, roomy), atol=1e-5)


@pytest.mark.parametrize("family", ["retrieval", "tango"])
def test_a_batch_is_what_its_rows_are(unet: Any, tango: Any, conditions: Conditions, family: str) -> None:
    network = unet if family == "retrieval" else tango
    rows = conditions if family == "retrieval" else Conditions(None, *(conditions.text or ()))
    noisy, steps = random(2, 8, 8, 4), torch.tensor([10, 900])
    with torch.no_grad():
        batch = predict(network, noisy, steps, rows)
        singles = [predict(network, noisy[[row]], steps[[row]], rows.select([row])) for row in range(2)]
    assert torch.allclose(batch, torch.cat(singles), atol=1e-5)


CHANGES: dict[str, Callable[[Conditions], Conditions]] = {
    "prompt": lambda c: replace(c, prompt=c.prompt.roll(1, 0)),  # type: ignore[union-attr]
    "text": lambda c: replace(c, text_tokens=c.text_tokens.roll(1, 0)),  # type: ignore[union-attr]
    "audio": lambda c: replace(c, audio_tokens=c.audio_tokens.roll(1, 0)),  # type: ignore[union-attr]
}


@pytest.mark.parametrize("stream", CHANGES)
def test_each_condition_alone_changes_the_output(unet: Any, conditions: Conditions, stream: str) -> None:
    changed = CHANGES[stream](conditions)
    assert (run(unet, conditions) - run(unet, changed)).abs().max() > 1e-3


@pytest.mark.parametrize(("stream", "silenced", "other"), [("audio", 1, "text"), ("text", 2, "audio")])
def test_streams_go_where_they_belong(conditions: Conditions, stream: str, silenced: int, other: str) -> None:
    torch.manual_seed(0)
    unet = build(TINY).eval()
    with torch.no_grad():
        for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
            for number, attention in enumerate(getattr(block, "attentions", ())):
                if number % 3 == silenced:  # of each triple: self-attention, stream 0, stream 1
                    attention.proj_out.weight.zero_()
                    attention.proj_out.bias.zero_()
    assert torch.equal(run(unet, conditions), run(unet, CHANGES[stream](conditions)))
    assert not torch.equal(run(unet, conditions), run(unet, CHANGES[other](conditions)))


def test_gradients_reach_every_weight(unet: Any, conditions: Conditions) -> None:
    network = build(TINY)
    predict(network, random(2, 8, 8, 4), torch.tensor([10, 900]), conditions).square().mean().backward()
    without = [name for name, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert without == []


def test_the_trap_that_null_tokens_avoid(unet: Any, conditions: Conditions) -> None:
    tokens, kept = conditions.text_tokens[:, 1:], torch.ones(2, 9, dtype=torch.bool)  # type: ignore[index]
    with torch.no_grad():
        outputs = [
            unet(
                random(2, 8, 8, 4),
                500,
                class_labels=conditions.prompt,
                encoder_hidden_states=conditions.audio_tokens,
                encoder_hidden_states_1=tokens,
                encoder_attention_mask_1=mask,
            ).sample
            for mask in (kept, ~kept)
        ]
    assert torch.allclose(*outputs, atol=1e-4)  # masking all keys is masking none
    with pytest.raises(ValueError, match="row of text_mask is False throughout"):
        Conditions(conditions.prompt, tokens, ~kept)


def test_a_saved_network_is_the_same(unet: Any, conditions: Conditions, tmp_path: Path) -> None:
    unet.save_pretrained(tmp_path)
    loaded = AudioLDM2UNet2DConditionModel.from_pretrained(tmp_path)
    assert family_of(loaded) == "retrieval" and stream_widths(loaded) == (7, 5)
    assert torch.equal(run(unet, conditions), run(loaded, conditions))


def test_tango_reads_text_alone(tango: Any, conditions: Conditions) -> None:
    text = Conditions(None, *(conditions.text or ()))
    assert family_of(tango) == "tango"
    assert not torch.equal(run(tango, text), run(tango, CHANGES["text"](text)))
    with pytest.raises(ValueError, match="no stream for audio"):
        run(tango, replace(conditions, prompt=None))
    with pytest.raises(ValueError, match="expected the prompt's text tokens"):
        run(tango, Conditions(random(2, 6)))


def test_wrong_conditions_are_refused(unet: Any, conditions: Conditions) -> None:
    with pytest.raises(ValueError, match="one row of conditions per row"):
        predict(unet, random(3, 8, 8, 4), 1, conditions)
    with pytest.raises(ValueError, match="prompt's vector"):
        run(unet, replace(conditions, prompt=None))
    with pytest.raises(ValueError, match="prompt_dim=6, got 4"):
        run(unet, Conditions(random(2, 4)))
    with pytest.raises(ValueError, match="audio_dim=7, got 5"):
        run(unet, replace(conditions, audio_tokens=conditions.text_tokens, audio_mask=conditions.text_mask))
    flat = AudioLDM2UNet2DConditionModel(
        block_out_channels=(8, 8),
        norm_num_groups=8,
        attention_head_dim=2,
        cross_attention_dim=(5, 7),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    with pytest.raises(ValueError, match="expected a denoiser that"):
        family_of(flat)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": (196, 392)}, "multiples of norm_groups"),
        ({"heads": (3, 4)}, "heads should divide"),
        ({"heads": (4,)}, "one entry per level"),
        ({"family": "audioldm"}, "family should be one of"),
        ({"family": "tango"}, "prompt_dim=0 and audio_dim=0"),
        ({"audio_dim": 0}, "needs prompt_dim and audio_dim"),
        ({"layers": 0}, "at least 1"),
    ],
)
def test_configurations_that_cannot_be_built(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


def test_unknown_presets_and_fields() -> None:
    with pytest.raises(ValueError, match="preset should be one of tiny, .*got 'large'"):
        preset("large")
    with pytest.raises(TypeError, match="promptdim"):
        preset("tiny", promptdim=3)
