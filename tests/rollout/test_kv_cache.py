from __future__ import annotations

import torch

from strop.rollout.kv_cache import KVCache, LayerCache, PromptGroup, StepPlan


def plan(own: list[int], capacity: int | None = None, lockstep: int | None = None) -> StepPlan:
    return StepPlan(torch.tensor(own), torch.tensor(own), capacity or max(own) + 1, lockstep)


def filled(slots: int = 3, capacity: int = 130) -> LayerCache:
    layer = LayerCache(slots, capacity)
    layer.store_prompt(4, torch.ones(1, 2, 3, 5), torch.ones(1, 2, 3, 6))
    assert layer.keys is not None and layer.values is not None
    layer.keys.fill_(float("nan"))
    layer.values.fill_(float("nan"))
    return layer


def test_sizes_come_from_the_first_keys() -> None:
    layer = filled()
    assert layer.keys is not None and layer.keys.shape == (3, 2, 130, 5)
    assert layer.values is not None and layer.values.shape == (3, 2, 130, 6)


def test_what_may_be_read_holds_numbers() -> None:
    layer = filled()
    assert layer.keys is not None
    layer.reserve(10)
    assert layer.keys[:, :, :64].isfinite().all() and layer.keys[:, :, 64:].isnan().all()
    layer.keys[0, :, 3] = 7.0
    layer.reserve(100)
    assert layer.keys[:, :, :100].isfinite().all()
    assert (layer.keys[0, :, 3] == 7).all()
    layer.reserve(130)
    assert layer.keys.isfinite().all()


def test_forking_copies_the_prompt_into_slots() -> None:
    layer = filled()
    assert layer.keys is not None
    layer.fork(4, torch.tensor([2, 0]))
    assert (layer.keys[[0, 2], :, :3] == 1).all() and (layer.keys[1, :, :3] == 0).all()


def test_rows_write_at_their_own_places() -> None:
    for lockstep in (None, 1):
        layer = filled()
        assert layer.keys is not None and layer.values is not None
        layer.reserve(5)
        own = [1, 1] if lockstep else [2, 0]
        key, value = torch.randn(2, 2, 1, 5), torch.randn(2, 2, 1, 6)
        layer.append(plan(own, lockstep=lockstep), key, value)
        for row, place in enumerate(own):
            assert torch.equal(layer.keys[row, :, place], key[row, :, 0])
            assert torch.equal(layer.values[row, :, place], value[row, :, 0])


def test_prompts_that_nobody_needs_are_forgotten() -> None:
    cache = KVCache(2, 4)
    module = torch.nn.Identity()
    cache.layer(module).store_prompt(0, torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    cache.layer(module).store_prompt(1, torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    cache.keep_prompts(lambda prompt: prompt == 1)
    assert list(cache.layer(module).prompts) == [1]


def test_the_bias_hides_what_a_row_has_not_written_and_what_left_its_window() -> None:
    def visible(bias: torch.Tensor | None) -> list[list[int]]:
        assert bias is not None
        return [(line == 0).nonzero()[:, 0].tolist() for line in bias[:, 0, 0]]

    assert visible(plan([2, 0]).own_bias(None, torch.float32)) == [[0, 1, 2], [0]]
    assert visible(plan([3, 1]).own_bias(2, torch.float32)) == [[2, 3], [0, 1]]
    assert visible(plan([1, 1], capacity=4, lockstep=1).own_bias(None, torch.float32)) == [[0, 1], [0, 1]]
    together = plan([3, 3], lockstep=3)
    assert together.own_bias(None, torch.float32) is None
    assert together.own_range(2) == (2, 4) and together.own_bias(2, torch.float32) is None


def test_a_window_ends_inside_the_prompt_row_by_row() -> None:
    group = PromptGroup(prompt=0, length=4, start=0, stop=2, positions=[4, 6])
    assert group.first_visible(None) == (0, 0)
    assert group.first_visible(100) == (0, 0)
    assert group.first_visible(4) == (1, 3)  # position 4 sees 1.., position 6 sees 3..
    step = StepPlan(torch.tensor([0, 2]), torch.tensor([4, 6]), 3)
    bias = step.prompt_bias(group, 4, 2, torch.float32)
    assert bias.shape == (1, 1, 4, 3)  # two query heads per key head; columns 1..3
    assert (bias[0, 0] == 0).tolist() == [[True] * 3] * 2 + [[False, False, True]] * 2
