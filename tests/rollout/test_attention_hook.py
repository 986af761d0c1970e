from __future__ import annotations

import pytest
import torch
from torch import nn

from strop.rollout.attention_hook import Decode, Prefill, Shape, rollout_attention
from strop.rollout.kv_cache import KVCache
from strop.rollout.scheduler import Row, Scheduler

HEADS, KV, DIM = 4, 2, 8
LENGTHS = {0: 9, 1: 3}  # tokens of two prompts
STEPS = 5


def expected_output(query, key, value, window):
    """Plain causal attention over one whole sequence, the output at its last position."""
    length = key.shape[1]
    scores = query[:, -1:] @ key.repeat_interleave(HEADS // KV, 0).transpose(-1, -2) * 0.4  # (H, 1, T)
    if window is not None:
        scores[..., : max(0, length - window)] = -torch.inf
    return (scores.softmax(-1) @ value.repeat_interleave(HEADS // KV, 0))[:, 0]  # (H, D)


@pytest.mark.parametrize("window", [None, 2, 4, 7, 100])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("lockstep", [True, False])
def test_decoding_step_by_step_is_causal_attention(window: int | None, share: bool, lockstep: bool) -> None:
    """Rows of two prompts, interleaved, at equal or different ages, through windows that cut prompts in the middle."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    module, shape = nn.Identity(), Shape(0.4, window, None, None)
    cache = KVCache(4, 20)
    segments = [(0, None, 0, 9), (1, None, 9, 12)]
    prompt_keys, prompt_values = random(1, KV, 12, DIM), random(1, KV, 12, DIM)
    Prefill(cache, segments).attention(module, random(1, HEADS, 12, DIM), prompt_keys, prompt_values, shape)
    scheduler = Scheduler([], 4, share)
    starts = [0, 0, 0, 0] if lockstep else [0, 3, 1, 0]  # the step at which each row joins
    prompt_of = [1, 0, 1, 0]
    keys = {r: prompt_keys[0, :, slice(*segments[prompt_of[r]][2:])] for r in range(4)}
    values = {r: prompt_values[0, :, slice(*segments[prompt_of[r]][2:])] for r in range(4)}
    order = sorted(range(4), key=lambda r: starts[r])
    for step in range(STEPS):
        for row in order:
            if starts[row] == step:
                slot = scheduler.free_slots[0]
                prompt = prompt_of[row]
                scheduler.slots[slot] = Row(prompt, prompt, row, LENGTHS[prompt], 99, random(0).numpy(), [0], [0.0])
                if not share:
                    cache.fork({prompt: [slot]}, torch.device("cpu"))
        active = [row.sample for row in scheduler.active]
        _, plan = scheduler.plan(torch.device("cpu"))
        assert (plan.lockstep is not None) == (len({len(r.ids) for r in scheduler.active}) == 1) or not share
        query = random(len(active), HEADS, 1, DIM)
        key, value = random(len(active), KV, 1, DIM), random(len(active), KV, 1, DIM)
        cache.reserve(plan.capacity)
        out = Decode(cache, plan).attention(module, query, key, value, shape)  # (R, 1, H, D)
        for place, row in enumerate(active):
            keys[row] = torch.cat([keys[row], key[place]], 1)
            values[row] = torch.cat([values[row], value[place]], 1)
            wanted = expected_output(query[place], keys[row], values[row], window)
            torch.testing.assert_close(out[place, 0], wanted, atol=1e-12, rtol=0)
        for r in scheduler.active:
            r.ids.append(0)


def test_queries_left_in_float32_by_autocast_follow_the_values() -> None:
    seen = []

    class Call:
        def attention(self, module, query, key, value, shape):
            seen.append((query.dtype, key.dtype, shape.scale))
            return query

    query, value = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4, dtype=torch.bfloat16)
    rollout_attention(nn.Identity(), query, query, value, None, rollout=Call())  # type: ignore[arg-type]
    assert seen == [(torch.bfloat16, torch.bfloat16, 0.5)]
