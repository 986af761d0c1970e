from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from strop.model.forest import always
from strop.rollout import SamplingParams
from strop.rollout.beginnings import Beginnings, Kept
from strop.rollout.decoder import Decoder
from strop.rollout.generator import keeping
from strop.rollout.native import NativeGenerator
from strop.testing.tiny import tiny_model

HEAD = [3, 4, 5, 6, 7, 8, 9, 10, 11, 12]  # longer than the sliding window of the tiny models (8)
FORK = [*HEAD, 20, 21, 22]
PROMPTS = [[*FORK, 30], [*HEAD, 14, 15, 16], [17, 18], FORK, [*FORK, 40, 41], HEAD]
DRAWN = SamplingParams(max_new_tokens=6, temperature=0.9, stop_token_ids=(2,), seed=4)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}
"""Nats by which log-probs may differ from those of prompts that are computed whole."""


def test_parts_cover_every_prompt_and_are_met_once() -> None:
    draw = random.Random(0)
    for _ in range(50):
        prompts = sorted({tuple(draw.choices((5, 6), k=draw.randint(1, 6))) for _ in range(draw.randint(1, 7))})
        draw.shuffle(prompts)
        beginnings, computed = Beginnings(list(map(list, prompts)), always), set[int]()
        for number, prompt in enumerate(prompts):
            for part in beginnings.missing(number, computed):
                assert part.above is None or part.above in computed
                assert list(prompt[part.start : part.start + len(part.ids)]) == part.ids != []
                assert beginnings.last[part.key] >= number
                computed.add(part.key)
            way = [beginnings.parts[number]]
            while way[-1].above is not None:
                way.append(beginnings.parts[way[-1].above])
            assert [token for part in way[::-1] for token in part.ids] == list(prompt)
        assert sum(len(part.ids) for part in beginnings.parts.values()) < 7 * 6


@pytest.mark.parametrize("arch", ["llama", "mistral", "gemma2", "gpt_oss", "gpt2"])
@pytest.mark.parametrize("share", [True, False])
def test_common_beginnings_are_computed_once(arch: str, share: bool) -> None:
    model = tiny_model(arch)
    options: dict[str, Any] = {"share_prompts": share, "max_slots": 3, "prefill_tokens": 16}
    whole = NativeGenerator(model, shares=None, **options).generate(PROMPTS, 2, DRAWN)
    once = NativeGenerator(model, shares=always, **options).generate(PROMPTS, 2, DRAWN)
    assert (whole.prefilled, whole.prompt_tokens) == (67, 2 * 67)
    assert once.prefilled == 23  # tokens of the trie of all but the last tokens, and these
    assert_same(once, whole, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_all_that_differs(dtype: torch.dtype) -> None:
    model = tiny_model("llama", dtype=dtype)
    alone = [NativeGenerator(model, shares=None).generate(PROMPTS, 1, DRAWN)]
    alone.append(NativeGenerator(model, shares=always).generate(PROMPTS, 1, DRAWN))
    first = [torch.tensor([row[0][0] for row in rollout.sampler_logps]) for rollout in alone]
    torch.testing.assert_close(*first, atol=TOLERANCE[dtype], rtol=0)


def test_short_beginnings_are_not_worth_it(llama: nn.Module) -> None:
    engine = NativeGenerator(llama)
    assert engine.generate([[*HEAD, 20], [*HEAD, 21]], 1, DRAWN).prefilled == 22
    assert engine.generate([[*HEAD, *HEAD, 20], [*HEAD, *HEAD, 21]], 1, DRAWN).prefilled == 22


def conversation(engine: NativeGenerator, turns: int = 3) -> list[Any]:
    """Turns of two samples of two prompts, each answered by two tokens."""
    contexts, found = [prompt for prompt in (FORK, [17, 18]) for _ in range(2)], []
    with keeping(engine):  # type: ignore[arg-type]
        for turn in range(turns):
            found.append(engine.generate(contexts, 1, SamplingParams(max_new_tokens=5, stop_token_ids=(), seed=turn)))
            contexts = [p + c[0] + [50, 51] for p, c in zip(contexts, found[-1].completions, strict=True)]
    return found


@pytest.mark.parametrize("arch", ["llama", "mistral", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("share", [True, False])
def test_turns_go_on_from_the_keys_of_those_before(arch: str, share: bool) -> None:
    model = tiny_model(arch)
    anew = conversation(NativeGenerator(model, share_prompts=share, shares=None))
    kept = conversation(NativeGenerator(model, share_prompts=share, shares=always))
    for turn, (one, other) in enumerate(zip(anew, kept, strict=True)):
        assert_same(other, one, torch.float64)
        assert turn == 0 or other.prefilled == 4 * 3  # the last token of the turn, and what answered it


def test_nothing_is_kept_behind_a_conversation(llama: nn.Module) -> None:
    """Its weights may be others by then."""
    engine = NativeGenerator(llama, shares=always)
    conversation(engine, turns=1)
    assert engine.kept is None
    assert engine.generate([FORK], 1, DRAWN).prefilled == len(FORK)


def test_the_oldest_rows_make_room() -> None:
    kept = Kept(most_tokens=5)
    for ids in ([1, 2], [3, 4, 5], [6]):
        kept.add(ids, {})
    assert [ids for ids, _ in kept.rows] == [[3, 4, 5], [6]]
    kept.add([7] * 6, {})
    assert kept.rows == []


def test_what_is_kept_is_bounded(
    llama: nn.Module, monkeypatch: pytest.MonkeyPatch, largest_gap: Callable[..., float]
) -> None:
    anew = conversation(NativeGenerator(llama, shares=None))
    monkeypatch.setattr("strop.rollout.limits.kept_tokens", lambda model, dtype: len(FORK) + 4)  # one row's
    kept = conversation(NativeGenerator(llama, shares=always), turns=2)
    assert sum(len(ids) for ids in kept[1].prompts) > kept[1].prefilled > 4 * 3
    assert_same(kept[1], anew[1], torch.float64)


def test_beginnings_are_forgotten_with_their_last_prompt(llama: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    held, original = [], Decoder.step

    def watched(self: Decoder, *args: Any) -> torch.Tensor:
        held.append(len(next(iter(self.cache.layers.values())).prompts))
        return original(self, *args)

    monkeypatch.setattr(Decoder, "step", watched)
    NativeGenerator(llama, shares=always, max_slots=1, share_prompts=False).generate(
        [[*HEAD, 20], [*HEAD, 21], [30]], 1, SamplingParams(max_new_tokens=3, stop_token_ids=(), seed=1)
    )
    assert held == [1, 1, 0, 0, 0, 0]


def assert_same(one: Any, other: Any, dtype: torch.dtype) -> None:
    assert one.completions == other.completions
    for a, b in zip(one.sampler_logps, other.sampler_logps, strict=True):
        for row_a, row_b in zip(a, b, strict=True):
            assert row_a == pytest.approx(row_b, abs=TOLERANCE[dtype])
