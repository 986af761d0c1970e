from __future__ import annotations

import pytest
import torch

from strop.rollout.beginnings import Part
from strop.rollout.decoder import Decoder
from strop.rollout.rollout_mode import rollout_attention, sampling_mode
from strop.testing.tiny import tiny_model


@pytest.mark.parametrize("arch", ["llama", "mistral", "gemma2", "gpt_oss", "gpt2", "opt"])
def test_prompts_laid_end_to_end_do_not_see_each_other(arch: str, prompts: list[list[int]]) -> None:
    model = tiny_model(arch)
    with torch.no_grad():
        expected = torch.stack([model(input_ids=torch.tensor([p])).logits[0, -1] for p in prompts])
    decoder = Decoder(model, 4, 20)
    with sampling_mode([model]), rollout_attention([model]):
        logits = decoder.prefill([Part(*pair) for pair in enumerate(prompts)], torch.device("cpu"))
    torch.testing.assert_close(logits, expected, atol=1e-10, rtol=0)
    assert decoder.prefilled_tokens == sum(map(len, prompts))


def test_models_that_compute_all_logits_are_read_at_the_ends(prompts: list[list[int]]) -> None:
    model = tiny_model("llama")
    forward = model.forward
    with torch.no_grad():
        expected = torch.stack([model(input_ids=torch.tensor([p])).logits[0, -1] for p in prompts])
    with sampling_mode([model]), rollout_attention([model]):
        decoder = Decoder(lambda *, logits_to_keep=0, **kw: forward(**kw), 4, 20)
        logits = decoder.prefill([Part(*pair) for pair in enumerate(prompts)], torch.device("cpu"))
    torch.testing.assert_close(logits, expected, atol=1e-10, rtol=0)


def test_half_precision_logits_are_widened() -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    with sampling_mode([model]), rollout_attention([model]):
        logits = Decoder(model, 1, 4).prefill([Part(0, [5, 6])], torch.device("cpu"))
    assert logits.dtype == torch.float32
