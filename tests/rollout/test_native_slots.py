"""Slots of the native engine: when prompts are computed and freed, when rows enter and end, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from strop.errors import ConfigError, DataError, RolloutError
from strop.rollout import SamplingParams
from strop.rollout.decoder import Decoder
from strop.rollout.native import NativeGenerator
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

GREEDY = SamplingParams(max_new_tokens=10, temperature=0, stop_token_ids=(2,))


def test_prompts_are_freed_when_their_last_row_is_done(
    llama: nn.Module, monkeypatch: pytest.MonkeyPatch, prompts: list[list[int]]
) -> None:
    held: list[int] = []
    original = Decoder.step

    def watched(self: Decoder, *args: Any) -> torch.Tensor:
        held.append(len(next(iter(self.cache.layers.values())).prompts))
        return original(self, *args)

    monkeypatch.setattr(Decoder, "step", watched)
    sampling = SamplingParams(max_new_tokens=4, stop_token_ids=(), seed=1)
    NativeGenerator(llama, max_slots=2, share_prompts=True).generate(prompts, 2, sampling)
    assert max(held) == 1
    held.clear()
    NativeGenerator(llama, max_slots=2, share_prompts=False).generate(prompts, 2, sampling)
    assert max(held) == 0


def test_distinct_prompts_are_computed_once(llama: nn.Module, prompts: list[list[int]]) -> None:
    sampling = SamplingParams(max_new_tokens=6, stop_token_ids=(), seed=1)
    tokens = sum(map(len, prompts))
    for slots in (None, 3):
        engine = NativeGenerator(llama, max_slots=slots)
        rollout = engine.generate(prompts + prompts[:2], 4, sampling)
        assert engine.prefilled_tokens == tokens, slots
        assert len(rollout.completions) == len(prompts) + 2
    assert engine.decode_steps < 6 * 6 * 4  # far fewer than one step per token


def test_prefill_respects_its_budget(
    llama: nn.Module, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    original = Decoder.prefill

    def counted(self: Decoder, chosen: list, device: torch.device) -> torch.Tensor:
        sizes.append(sum(len(part.ids) for part in chosen))
        return original(self, chosen, device)

    monkeypatch.setattr(Decoder, "prefill", counted)
    sampling = SamplingParams(max_new_tokens=3, stop_token_ids=(), seed=1)
    whole = NativeGenerator(llama).generate(prompts, 2, sampling)
    assert sizes == [21]
    sizes.clear()
    cut = NativeGenerator(llama, prefill_tokens=9).generate(prompts, 2, sampling)
    assert sizes == [11, 9, 1]  # a longer prompt goes alone
    assert cut.completions == whole.completions


def test_slots_are_refilled(llama: nn.Module) -> None:
    stops = tuple(range(2, 20))  # short completions of very different lengths
    sampling = SamplingParams(max_new_tokens=30, stop_token_ids=stops, seed=5)
    engine = NativeGenerator(llama, max_slots=4)
    rollout = engine.generate([[30, 31], [32]], 20, sampling)
    lengths = [len(ids) for line in rollout.completions for ids in line]
    assert len(lengths) == 40 and len(set(lengths)) > 3
    fed = sum(length - 1 for length in lengths)  # the first token comes from the prefill
    assert fed / 4 <= engine.decode_steps <= fed / 4 + 30 + 1  # busy until nothing waits, then one tail


def test_stop_ids_belong_to_the_completion(llama: nn.Module, prompts: list[list[int]]) -> None:
    stops = (2, 7, 8, 9, 10)
    sampling = SamplingParams(max_new_tokens=9, stop_token_ids=stops, seed=2)
    rollout = NativeGenerator(llama).generate(prompts, 6, sampling)
    reasons = set()
    for line, finishes, logps in zip(rollout.completions, rollout.finish_reasons, rollout.sampler_logps, strict=True):
        for ids, finish, row in zip(line, finishes, logps, strict=True):
            reasons.add(finish)
            assert len(ids) == len(row)
            assert not set(ids[:-1]) & set(stops)
            assert (finish == "stop") == (ids[-1] in stops)
            assert finish == "stop" or len(ids) == 9
    assert reasons == {"stop", "length"}


def test_default_stop_ids_are_used_unless_given(llama: nn.Module) -> None:
    logits = {}
    for stops in (None, ()):
        sampling = SamplingParams(max_new_tokens=40, temperature=3.0, stop_token_ids=stops, seed=8)
        rollout = NativeGenerator(llama).generate([[5, 6]], 30, sampling)
        logits[stops] = [ids for line in rollout.completions for ids in line]
    assert any(2 in ids[:-1] for ids in logits[()])
    assert all(2 not in ids[:-1] for ids in logits[None]) and any(ids[-1] == 2 for ids in logits[None])


def test_stop_strings(llama: nn.Module) -> None:
    tokenizer = toy_tokenizer()
    sampling = SamplingParams(max_new_tokens=40, temperature=3.0, stop_token_ids=(), stop_strings=("!", "A"), seed=8)
    engine = NativeGenerator(llama, tokenizer)
    rollout = engine.generate([[5, 6]], 20, sampling)
    finishes = rollout.finish_reasons[0]
    assert "stop" in finishes
    for ids, finish in zip(rollout.completions[0], finishes, strict=True):
        text = tokenizer.decode(ids)
        assert ("!" in text or "A" in text) == (finish == "stop")
        before = tokenizer.decode(ids[:-1])
        assert "!" not in before and "A" not in before
    with pytest.raises(ConfigError, match="tokenizer"):
        NativeGenerator(llama).generate([[5]], 1, sampling)


def test_prompts_that_cannot_be_continued_are_named_together(llama: nn.Module) -> None:
    with pytest.raises(DataError) as caught:
        NativeGenerator(llama).generate([[5], [], [64], [3, -1]], 1, GREEDY)
    assert all(text in str(caught.value) for text in ("prompt 1", "prompt 2", "id 64", "prompt 3"))
    with pytest.raises(ConfigError, match="integer >= 1"):
        NativeGenerator(llama).generate([[5]], 0, GREEDY)
    assert NativeGenerator(llama).generate([], 2, GREEDY).completions == []


def test_a_position_table_ends_completions_early(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("gpt2", n_positions=12, max_position_embeddings=12)
    sampling = SamplingParams(max_new_tokens=8, stop_token_ids=(), seed=0)
    with caplog.at_level("WARNING"):
        rollout = NativeGenerator(model).generate([[5] * 9, [6, 7]], 1, sampling)
    assert [len(ids) for line in rollout.completions for ids in line] == [3, 8]
    assert rollout.finish_reasons == [["length"], ["length"]]
    assert "1 of 2 prompts" in caplog.text
    with pytest.raises(DataError, match="12 tokens, and the model reads 12"):
        NativeGenerator(model).generate([[5] * 12], 1, sampling)


def test_weights_that_diverged_are_named() -> None:
    model = tiny_model("llama")
    model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(RolloutError, match="diverged"):
        NativeGenerator(model).generate([[5, 6]], 1, SamplingParams(max_new_tokens=3, seed=0))


def test_a_prompt_may_contain_earlier_turns(llama: nn.Module) -> None:
    """Continuing from prompt + first tokens gives the rest of the same completion."""
    sampling = SamplingParams(max_new_tokens=10, temperature=0, stop_token_ids=())
    engine = NativeGenerator(llama)
    whole = engine.generate([[5, 6, 7]], 1, sampling).completions[0][0]
    rest = engine.generate([[5, 6, 7, *whole[:4]]], 1, sampling).completions[0][0]
    assert rest[:6] == whole[4:]


@pytest.mark.parametrize("name", ["max_slots", "prefill_tokens"])
def test_settings_out_of_range_are_errors(name: str, llama: nn.Module) -> None:
    with pytest.raises(ConfigError, match=name):
        NativeGenerator(llama, **{name: 0})  # type: ignore[arg-type]
