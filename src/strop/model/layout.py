"""Examples -> Batch: where every token lies in the model's input, and which hidden state scores it.

Three layouts hold the same trees and score the same tokens in the same order:

    tree     one row (1, T); what completions begin with alike is there once (see `segments`): the prompt of a tree,
             and where it pays (see `forest`) whatever the rows of different trees have in common
    packed   one row (1, T); every completion has its own copy of the prompt
    padded   (S, T); one row per completion, padded on the right, with an attention mask

A completion's tokens are input only as far as something is read from them: its last token predicts nothing, so
it is left out unless the token itself is scored (reward score, step label). Which tokens are padding or scored is
known from lengths and masks, never from token ids: a pad id may equal any other id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from strop.device import sent, sent_together
from strop.errors import ConfigError, DataError, did_you_mean
from strop.model.forest import Rule, forest, in_order, pays
from strop.model.segments import Segments, Span
from strop.records import Batch, Example, Want

LAYOUTS = ("tree", "packed", "padded")
_SHIFTED = Want.LOGPS | Want.ENTROPY | Want.TOP1 | Want.MEAN_LOGIT | Want.LOG_SQUARE | Want.VALUE | Want.HIDDEN


@dataclass(slots=True)
class _Completion:
    """One completion and where it lies: position p of prompt + completion is at `places[p]` in the flattened input."""

    tree: int
    prompt_length: int
    ids: list[int]
    scored: list[int]  # indices into ids of the scored tokens
    fed: int  # how many of its tokens are input
    places: Sequence[int] = ()


def build_batch(
    examples: Sequence[Example],
    layout: str = "tree",
    *,
    want: Want = Want.LOGPS,
    vocab_size: int | None = None,
    shares: Rule | None = pays,
    device: torch.device | str | None = None,
) -> Batch:
    """Lay examples out for one forward pass.

    Args:
        examples: the trees of a micro-batch; every completion has at least one token.
        layout: "tree", "packed" or "padded".
        want: what will be read; `STEP` reads the scored tokens' own states, everything else the states before them,
            so `STEP` cannot be combined with the others. `SCORE` needs every completion's last token as input.
        vocab_size: if given, ids outside 0..vocab_size-1 are refused.
        shares: which common beginnings the "tree" layout computes once, beside the prompts of its trees; None for
            these prompts alone.
        device: where the tensors go.

    Returns:
        A `Batch`. Scored tokens are ordered tree by tree, completion by completion, position by position in every
        layout. The first token of a completion without a prompt has nothing to be predicted from: it is not scored
        (except by `STEP`).

    Raises:
        DataError: empty completions, wrong masks or wrong ids, all of them collected.
        ConfigError: an unknown layout or an impossible combination of `want`.
    """
    if layout not in LAYOUTS:
        raise ConfigError(
            f"Unknown layout {layout!r}. Choose one of {', '.join(LAYOUTS)}.{did_you_mean(layout, LAYOUTS)}"
        )
    if want & Want.STEP and want & _SHIFTED:
        raise ConfigError(
            "Want.STEP reads the state of the scored token itself, the other per-token kinds read the state before it. "
            f"They need two forward passes; got {want}."
        )
    _check(examples, vocab_size)
    completions = [item for tree, example in enumerate(examples) for item in _completions(tree, example, want)]
    if layout == "padded":
        inputs, segments = _padded(examples, completions), None
    else:
        inputs, segments = _flat(examples, completions, layout, shares)
    lists = _reading(examples, completions, shift=0 if want & Want.STEP else 1)
    tensors = inputs | {name: torch.tensor(values, dtype=torch.long) for name, values in lists.items()}
    found: dict[str, Any] = {"attention_mask": None, **sent_together(tensors, device)}
    return Batch(
        examples=list(examples),
        layout=layout,
        segments=segments,
        given_tokens=sum(len(item.places) for item in completions),
        sizes=[len(item.scored) for item in completions],
        **found,
    )


def _check(examples: Sequence[Example], vocab_size: int | None) -> None:
    if not examples:
        raise DataError("A batch needs at least one example; got none.")
    problems: list[str] = []
    for number, example in enumerate(examples):
        name = f"row {example.row}" if example.row >= 0 else f"example {number}"
        problems += [f"{name}: {problem}" for problem in _problems(example, vocab_size)]
    if problems:
        raise DataError.collect("Some examples cannot be laid out for the model:", problems)


def _problems(example: Example, vocab_size: int | None) -> list[str]:
    found: list[str] = []
    if not example.completions:
        return ["has no completion; every example needs at least one"]
    if example.loss_mask is not None and len(example.loss_mask) != len(example.completions):
        return [f"has {len(example.completions)} completions but {len(example.loss_mask)} loss masks"]
    for index, ids in enumerate(example.completions):
        if not ids:
            found.append(f"completion {index} is empty; a completion needs at least one token (its end token counts)")
            continue
        mask = example.mask(index)
        if len(mask) != len(ids):
            found.append(f"completion {index} has {len(ids)} tokens but a loss mask of {len(mask)}")
        elif not set(mask) <= {0, 1}:
            found.append(f"the loss mask of completion {index} holds values other than 0 and 1")
    if vocab_size is not None:
        ids = [*example.prompt_ids, *(i for completion in example.completions for i in completion)]
        if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
            wrong = next(i for i in ids if not 0 <= i < vocab_size)
            found.append(
                f"token id {wrong} is outside the model's vocabulary (0..{vocab_size - 1}): "
                "the tokenizer does not belong to this model"
            )
    return found


def _completions(tree: int, example: Example, want: Want) -> list[_Completion]:
    prompt_length = len(example.prompt_ids)
    items = []
    for index, ids in enumerate(example.completions):
        scored = [t for t, flag in enumerate(example.mask(index)) if flag]
        if want & Want.STEP:
            fed = scored[-1] + 1 if scored else 0
        else:
            scored = scored[1:] if prompt_length == 0 and scored and scored[0] == 0 else scored
            fed = scored[-1] if scored else 0
        if want & Want.SCORE:
            fed = len(ids)
        # A model cannot run on nothing: without a prompt at least one token of the completion is input.
        fed = max(fed, 1 if prompt_length == 0 else 0)
        items.append(_Completion(tree, prompt_length, ids, scored, fed))
    return items


def _flat(
    examples: Sequence[Example], completions: list[_Completion], layout: str, shares: Rule | None
) -> tuple[dict[str, torch.Tensor], Segments]:
    ids = [examples[item.tree].prompt_ids + item.ids[: item.fed] for item in completions]
    together: dict[int, list[int]] = {}
    for number, item in enumerate(completions):
        if item.prompt_length and item.fed and layout != "packed":
            together.setdefault(item.tree, []).append(number)
    if shares is None or layout == "packed":
        names = [_own_names(item, number, layout) for number, item in enumerate(completions)]
        roots, lies_on = forest(names, list(together.values()), _never)
    else:
        roots, lies_on = forest(ids, list(together.values()), shares)

    nodes, parents = in_order(roots)
    lengths = [node.stop - node.start for node in nodes]
    segments = Segments(list(map(Span, accumulate((0, *lengths)), lengths)), parents)
    leaves = {node.row: number for number, node in enumerate(nodes) if not node.children}
    for item, row, carrier in zip(completions, ids, lies_on, strict=True):
        leaf = leaves[carrier]
        segments.rows.append(_cut([*segments.ancestors(leaf), segments.spans[leaf]], len(row)))
        item.places = [place for span in segments.rows[-1] for place in range(span.start, span.end)]
    input_ids = [token for node in nodes for token in ids[node.row][node.start : node.stop]]
    position_ids = [position for node in nodes for position in range(node.start, node.stop)]
    inputs = {"input_ids": torch.tensor([input_ids]), "position_ids": torch.tensor([position_ids])}  # (1, T) each
    return inputs, segments


def _never(saved: int, below: int) -> bool:
    return False


def _own_names(item: _Completion, number: int, layout: str) -> list[int]:
    """Stand-ins for the ids of a row that are equal only where its layout shares the token without looking at it."""
    prompt = number if layout == "packed" else item.tree
    return [2 * prompt] * item.prompt_length + [2 * number + 1] * item.fed


def _cut(way: list[Span], length: int) -> list[Span]:
    """The first tokens of a way from a root."""
    found: list[Span] = []
    for span in way:
        if length > 0:
            found.append(Span(span.start, min(span.length, length)))
        length -= span.length
    return found


def _padded(examples: Sequence[Example], completions: list[_Completion]) -> dict[str, torch.Tensor]:
    width = max(item.prompt_length + item.fed for item in completions)
    input_ids, attention_mask = [], []
    for row, item in enumerate(completions):
        ids = examples[item.tree].prompt_ids + item.ids[: item.fed]
        padding = width - len(ids)
        input_ids.append(ids + [0] * padding)
        attention_mask.append([1] * len(ids) + [0] * padding)
        item.places = range(row * width, row * width + len(ids))
    return {
        "input_ids": torch.tensor(input_ids),  # (S, T)
        "position_ids": torch.arange(width).expand(len(completions), width),  # (S, T)
        "attention_mask": torch.tensor(attention_mask),  # (S, T)
    }


def _reading(examples: Sequence[Example], completions: list[_Completion], shift: int) -> dict[str, Sequence[int]]:
    """What is read where: the fields of a `Batch` that say so. A token's state is `shift` places before it."""
    pairs = [(item.places[item.prompt_length + t - shift], item.ids[t]) for item in completions for t in item.scored]
    found: dict[str, Sequence[int]] = {
        "source": [place for place, _ in pairs],  # (N,)
        "targets": [token for _, token in pairs],  # (N,)
        "segment": [number for number, item in enumerate(completions) for _ in item.scored],  # (N,)
        "tree_of": [item.tree for item in completions],  # (S,)
        # -1: the last token is not part of the input, and nothing is read from it.
        "last": [item.places[-1] if item.fed == len(item.ids) else -1 for item in completions],  # (S,)
    }
    first: dict[tuple[int, int], int] = {}  # of scored tokens with one source and target
    for number, pair in enumerate(pairs):
        first.setdefault(pair, number)
    if len(first) < len(pairs):
        numbers = {pair: number for number, pair in enumerate(first)}
        found["distinct"] = list(first.values())  # (K,)
        found["alike"] = [numbers[pair] for pair in pairs]  # (N,)
    ways = {item.tree: item.places for item in reversed(completions)}  # of copies of a prompt the first is scored
    prompts = [
        (place, token, tree)
        for tree, example in enumerate(examples)
        if example.score_prompt
        for place, token in zip(ways[tree], example.prompt_ids[1:], strict=False)
    ]
    if prompts:
        found["prompt_source"], found["prompt_targets"], found["prompt_segment"] = zip(*prompts, strict=True)  # (M,)
    return found


def token_copies(batch: Batch) -> torch.Tensor:
    """How many rows of the padded layout every input token stands for, like `input_ids` flattened, (rows * T,).

    1 everywhere except: padding counts 0, and a token that k rows share counts k. Averages over input tokens (a
    router's load) weighted by it do not depend on the layout.
    """
    if batch.attention_mask is not None:
        return batch.attention_mask.reshape(-1).to(torch.float32)
    copies = torch.zeros(batch.input_ids.numel())
    for row in batch.segments.rows:
        for span in row:
            copies[span.slice] += 1
    return sent(copies, batch.input_ids.device)  # (T,)
