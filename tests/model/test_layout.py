"""Where tokens lie and which of them are scored, in all three layouts."""

from __future__ import annotations

import pytest
import torch
from tests.support.random_trees import random_examples

from strop.errors import ConfigError, DataError
from strop.model.layout import LAYOUTS, build_batch, token_copies
from strop.records import Batch, Example, Want


def spelled(batch: Batch) -> list[tuple[int, int, int]]:
    """(completion, id the model reads at the source, target) of every scored token."""
    read = batch.input_ids.reshape(-1)[batch.source].tolist()
    return list(zip(batch.segment.tolist(), read, batch.targets.tolist(), strict=True))


def test_tree_shares_the_prompt_and_leaves_last_tokens_out() -> None:
    batch = build_batch([Example([1, 2, 3], [[4, 5], [6, 7, 8]]), Example([9], [[10, 11]])], "tree")
    # Prompt 1 2 3, then the tree with one completion as one stretch, then the branches without their last tokens.
    assert batch.input_ids.tolist() == [[1, 2, 3, 9, 10, 4, 6, 7]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 3, 3, 4]]
    assert spelled(batch) == [(0, 3, 4), (0, 4, 5), (1, 3, 6), (1, 6, 7), (1, 7, 8), (2, 9, 10), (2, 10, 11)]
    assert batch.tree_of.tolist() == [0, 0, 1]
    assert batch.attention_mask is None
    assert [(s.start, s.length) for s in batch.segments.spans] == [(0, 3), (3, 2), (5, 1), (6, 2)]
    assert batch.segments.parents == [-1, -1, 0, 0]


def test_packed_copies_the_prompt() -> None:
    batch = build_batch([Example([1, 2], [[4, 5], [6]])], "packed")
    assert batch.input_ids.tolist() == [[1, 2, 4, 1, 2]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert spelled(batch) == [(0, 2, 4), (0, 4, 5), (1, 2, 6)]


def test_padded_is_right_padded_with_positions_and_mask() -> None:
    batch = build_batch([Example([1, 2], [[4, 5, 6], [7]])], "padded")
    assert batch.input_ids.tolist() == [[1, 2, 4, 5], [1, 2, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert spelled(batch) == [(0, 2, 4), (0, 4, 5), (0, 5, 6), (1, 2, 7)]


@pytest.mark.parametrize("seed", range(5))
def test_all_layouts_score_the_same_tokens_in_the_same_order(seed: int) -> None:
    examples = random_examples(seed, prompt=(0, 4)) + random_examples(seed + 100, prompt=(0, 4), masked=True)
    batches = [build_batch(examples, layout) for layout in LAYOUTS]
    assert spelled(batches[0]) == spelled(batches[1]) == spelled(batches[2])
    expected = []
    number = 0
    for example in examples:
        for index, ids in enumerate(example.completions):
            context = example.prompt_ids + ids
            for t, flag in enumerate(example.mask(index)):
                at = len(example.prompt_ids) + t
                if flag and at > 0:
                    expected.append((number, context[at - 1], ids[t]))
            number += 1
    assert spelled(batches[0]) == expected


def test_pad_like_ids_are_ordinary_ids() -> None:
    batch = build_batch([Example([0, 0], [[0, 0, 2], [0]])], "padded")
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.targets.tolist() == [0, 0, 2, 0]


def test_first_token_without_a_prompt_is_not_scored() -> None:
    for layout in LAYOUTS:
        batch = build_batch([Example([], [[5, 6, 7], [8]])], layout)
        assert spelled(batch) == [(0, 5, 6), (0, 6, 7)]
        assert batch.num_completions == 2


def test_masked_tail_is_not_input() -> None:
    batch = build_batch([Example([1], [[4, 5, 6, 7]], loss_mask=[[1, 1, 0, 0]])], "tree")
    assert batch.input_ids.tolist() == [[1, 4]]
    assert batch.targets.tolist() == [4, 5]


def test_score_needs_last_tokens_as_input() -> None:
    examples = [Example([1, 2], [[4, 5], [6]])]
    for layout in LAYOUTS:
        batch = build_batch(examples, layout, want=Want.SCORE)
        assert batch.input_ids.reshape(-1)[batch.last].tolist() == [5, 6]
        assert build_batch(examples, layout).last.tolist() == [-1, -1]


def test_step_reads_the_scored_tokens_themselves() -> None:
    examples = [Example([], [[4, 5, 6, 7]], loss_mask=[[1, 0, 1, 0]])]
    for layout in LAYOUTS:
        batch = build_batch(examples, layout, want=Want.STEP)
        assert spelled(batch) == [(0, 4, 4), (0, 6, 6)]
        assert batch.input_ids.tolist() == [[4, 5, 6]]


def test_prompt_is_scored_once_per_tree() -> None:
    examples = [Example([1, 2, 3], [[4], [5]], score_prompt=True), Example([6, 7], [[8]])]
    for layout in LAYOUTS:
        batch = build_batch(examples, layout)
        assert batch.input_ids.reshape(-1)[batch.prompt_source].tolist() == [1, 2]
        assert batch.prompt_targets.tolist() == [2, 3]
        assert batch.prompt_segment.tolist() == [0, 0]
    assert build_batch(examples[1:]).prompt_source is None


def test_all_problems_are_named_together() -> None:
    examples = [
        Example([1], [[2], []], row=7),
        Example([1], []),
        Example([1], [[2, 3]], loss_mask=[[1]]),
        Example([1], [[2]], loss_mask=[[2]]),
        Example([1], [[2], [3]], loss_mask=[[1]]),
        Example([1], [[99]]),
        Example([-1], [[3]]),
    ]
    with pytest.raises(DataError) as caught:
        build_batch(examples, vocab_size=64)
    message = str(caught.value)
    for part in (
        "row 7: completion 1 is empty",
        "example 1: has no completion",
        "loss mask of 1",
        "other than 0 and 1",
    ):
        assert part in message
    assert "2 completions but 1 loss masks" in message
    assert "token id 99" in message and "token id -1" in message


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(DataError, match="at least one example"):
        build_batch([])
    with pytest.raises(ConfigError, match="Did you mean 'padded'"):
        build_batch([Example([1], [[2]])], "paded")
    with pytest.raises(ConfigError, match="two forward passes"):
        build_batch([Example([1], [[2]])], want=Want.STEP | Want.LOGPS)


def test_copies_count_what_each_token_stands_for() -> None:
    examples = [Example([1, 2], [[3, 4], [5, 6], [7]]), Example([8], [[9, 10]]), Example([1], [[2], [3]])]
    totals = {layout: token_copies(build_batch(examples, layout)).sum().item() for layout in LAYOUTS}
    assert totals == {"tree": 12.0, "packed": 12.0, "padded": 12.0}
    tree = build_batch(examples, "tree")
    by_id = dict(zip(tree.input_ids[0].tolist(), token_copies(tree).tolist(), strict=True))
    assert by_id[8] == 1.0 and by_id[3] == 1.0
    # The rows of the third tree are all prompt, with which the first begins.
    assert torch.equal(token_copies(tree)[:2], torch.tensor([5.0, 3.0]))
