"""The waist in one call: trees of tokens and a model in, per-token log-probabilities and scores out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from strop.errors import ConfigError
from strop.model.forward import input_device, install, pools_itself, score_batch, vocab_size
from strop.model.layout import build_batch
from strop.model.select import accepted_layout, layout_of
from strop.model.wrappers import base_model
from strop.records import Example, Scores, Want


def score(
    model: nn.Module,
    examples: Sequence[Example],
    *,
    layout: str = "auto",
    want: Want = Want.LOGPS,
    temperature: float = 1.0,
    head_bytes: int | None = None,
    grad_entropy: bool = False,
    aux_loss: bool = False,
) -> Scores:
    """Score the completions of some trees under a model.

        logps[n] = log softmax(logits(prompt, completion before token n) / temperature)[token n]

    so that the sum over a completion's tokens is its log-probability.

    Args:
        model: a transformers model: causal (log-probabilities), with a score or step head, PEFT or wrapped.
        examples: the trees of a micro-batch.
        layout: "auto" (see `layout_of`), "tree", "packed" or "padded"; the numbers are the same.
        want: what to compute; flags add up.
        temperature: > 0, divides the logits; the one that was sampled with.
        head_bytes: bytes that the logits of scored tokens may take; None for `default_head_bytes`.
        grad_entropy: whether the entropy carries a gradient.
        aux_loss: also compute a mixture-of-experts model's load-balancing loss.

    Returns:
        `Scores`; per-token entries are in the order tree, completion, position, scored tokens only.

    Raises:
        DataError: empty completions, wrong masks, ids outside the vocabulary.
        SetupError: the model lacks the head that `want` needs.
        ConfigError: an unknown layout, a temperature of 0, an impossible combination of `want`.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature must be above 0, got {temperature}. Use 1.0 for the model's own distribution.")
    install(model)
    inner = base_model(model)
    name = "padded" if want & Want.SCORE and pools_itself(inner) else accepted_layout(model, layout, examples)
    batch = build_batch(examples, name, want=want, vocab_size=vocab_size(inner), device=input_device(inner))
    return score_batch(
        model,
        batch,
        want,
        temperature=temperature,
        head_bytes=head_bytes,
        grad_entropy=grad_entropy,
        aux_loss=aux_loss,
        own_head=layout_of(model).own_head,
    )
