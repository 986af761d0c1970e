"""layout="auto": which layout a model can be scored in, tried out on a small example and remembered.

A model can share prompts if every layer's attention comes from transformers' attention interface, gets our segments,
and brings no mask or position scheme of its own. Reading that off an architecture's name would go stale, so it is
observed: a tree with two completions is scored in the tree layout and in the padded one, and both must agree.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from strop.errors import ConfigError, SetupError
from strop.model import attention
from strop.model.dropout import evaluating
from strop.model.forward import Scoring, call_on, input_device, install, pools_itself, vocab_size
from strop.model.layout import build_batch
from strop.model.wrappers import base_model, decoder_of
from strop.records import Batch, Example, Want

logger = logging.getLogger(__name__)

# What a small example cannot show: masks that differ from causal only far apart.
_LONG_RANGE = ("attention_chunk_size", "index_topk")
_TOLERANCE = {8: 1e-6, 4: 1e-3, 2: 5e-2}  # relative, by bytes of precision
FLAT_LAYOUTS = ("tree", "packed")
_LAYER_TYPES = {"full_attention", "sliding_attention"}


@dataclass(frozen=True, slots=True)
class LayoutChoice:
    """The layout a model is scored in.

    Attributes:
        name: "tree" or "padded".
        reason: one sentence for the log.
        own_head: whether log-probabilities must come from the model's own logits, because its output layer does
            something that `lm_head` cannot describe.
    """

    name: str
    reason: str
    own_head: bool = False


def layout_of(model: nn.Module) -> LayoutChoice:
    """The layout that `layout="auto"` means for a model; found once, logged, and kept on the model.

    Does not touch the caller's random state, nor any module's training mode.

    Raises:
        SetupError: an encoder-decoder, or no transformers model.
    """
    inner = base_model(model)
    kept = vars(inner).get("_strop_layout")
    if kept is None:
        install(model)
        kept = _choose(model, inner)
        inner._strop_layout = kept
        logger.info("%s is scored in the %s layout: %s", type(inner).__name__, kept.name, kept.reason)
        if kept.own_head:
            logger.warning(
                "the output layer of %s is not one that strop knows; its logits are computed in one piece",
                type(inner).__name__,
            )
    return kept


def accepted_layout(model: nn.Module, asked: str) -> str:
    """The layout that was asked for, or the model's own for "auto".

    Raises:
        ConfigError: rows would see one another, or positions be wrong, in the layout that was asked for.
    """
    choice = layout_of(model)
    if asked == "auto":
        return choice.name
    if asked in FLAT_LAYOUTS and choice.name == "padded":
        raise ConfigError(
            f"layout={asked!r} gives {type(base_model(model)).__name__} other numbers than one row at a time: "
            f"{choice.reason}. Use layout='auto' or layout='padded'."
        )
    return asked


def _choose(model: nn.Module, inner: Any) -> LayoutChoice:
    if getattr(inner.config, "is_encoder_decoder", False):
        raise SetupError(
            f"{type(inner).__name__} is an encoder-decoder; strop trains decoder-only language models. "
            "Choose a causal language model."
        )
    if pools_itself(inner):
        return LayoutChoice("padded", "it pools the sequence in its own way")
    # A sharded model must be entered through the wrapper that gathers its weights.
    runner = model if type(model).__name__ in ("FullyShardedDataParallel", "DeepSpeedEngine") else inner
    device = input_device(inner)
    devices = [device] if device.type == "cuda" else []
    with torch.no_grad(), evaluating(inner), torch.random.fork_rng(devices=devices):
        padded = _hidden(runner, "padded")
        precision = _precision(inner, device)
        own_head = _has_own_head(runner, inner, precision)
        reason = _why_not_tree(runner, inner, padded, precision)
    if reason is None:
        return LayoutChoice("tree", "every layer's attention takes shared prompts", own_head)
    return LayoutChoice("padded", reason, own_head)


def _precision(model: Any, device: torch.device) -> int:
    """Bytes of the narrowest floating-point numbers the model computes with, 2, 4 or 8."""
    sizes = {parameter.dtype.itemsize for parameter in model.parameters() if parameter.is_floating_point()}
    if torch.is_autocast_enabled(device.type) or "_original_forward" in vars(model):  # accelerate's mixed precision
        sizes.add(2)
    return max(2, min(sizes, default=4))


def _why_not_tree(runner: nn.Module, inner: Any, padded: torch.Tensor, precision: int) -> str | None:
    config = inner.config.get_text_config()
    for name in _LONG_RANGE:
        if getattr(config, name, None):
            return f"its config sets {name}, a mask that depends on the distance in the row"
    other = set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES
    if other:
        return f"it has layers of type {', '.join(sorted(other))}"
    with attention.observed() as calls:
        try:
            tree = _hidden(runner, "tree")
        except Exception as error:  # whatever foreign code raises on arguments it does not know
            cause = next(iter(str(error).splitlines()), "")
            return f"its layers cannot be called on a flat row ({type(error).__name__}: {cause})"
    layers = getattr(config, "num_hidden_layers", None)
    if len(calls) != layers:
        return f"{len(calls)} of its {layers} layers use transformers' attention interface"
    types = getattr(config, "layer_types", None) or []
    if types.count("sliding_attention") > sum(window is not None for window in calls):
        return "its sliding-window layers do not tell the attention function their window"
    errors = (tree.double() - padded.double()).norm(dim=1) / padded.double().norm(dim=1).clamp_min(1e-30)  # (N,)
    difference = _typical(errors, precision)
    if difference > _TOLERANCE[precision]:
        return f"tree and padded rows give different hidden states (relative difference {difference:.1e})"
    return None


def _small_batch(model: Any, layout: str) -> Batch:
    vocab = vocab_size(model) or 16
    ids = [(7 * i + 3) % vocab for i in range(9)]
    examples = [Example(ids[:3], [ids[3:5], ids[5:8]]), Example(ids[2:4], [ids[6:9]])]
    return build_batch(examples, layout, want=Want.HIDDEN, device=input_device(model))


def _hidden(model: Any, layout: str) -> torch.Tensor:
    batch = _small_batch(base_model(model), layout)
    return model(scoring=Scoring(batch, Want.HIDDEN))["hidden"]  # (N, H)


def _has_own_head(runner: nn.Module, model: Any, precision: int) -> bool:
    """Whether the head we compute differs from the model's own logits; False where there is no such head."""
    if getattr(model, "get_output_embeddings", lambda: None)() is None:
        return False
    batch = _small_batch(model, "padded")
    ours = runner(scoring=Scoring(batch, Want.LOGPS))["logps"]
    logits = call_on(runner, decoder_of(model), batch).logits
    own = logits.reshape(-1, logits.shape[-1])[batch.source].to(ours.dtype).log_softmax(-1)
    own = own.gather(1, batch.targets.to(own.device).unsqueeze(1)).squeeze(1)
    error = (ours - own).abs() / (1 + own.abs())
    return _typical(error, precision) > _TOLERANCE[precision]


def _typical(errors: torch.Tensor, precision: int) -> float:
    """The largest error; in half precision the median, because a router may flip on a single token."""
    return float(errors.median() if precision == 2 else errors.max())
