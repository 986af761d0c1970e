"""layout="auto": which layout a model can be scored in, tried out on a small example and remembered.

A model can share prompts if every layer's attention comes from transformers' attention interface, gets our segments,
and brings no mask or position scheme of its own. Reading that off an architecture's name would go stale, so it is
observed: trees that fork twice are scored in the tree layout and in the padded one, and both must agree. What
shows on long rows only is tried on a twin of the model (see `twin`), and on the first rows of a run.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from strop.errors import ConfigError, SetupError, StropError
from strop.model import attention
from strop.model.dropout import evaluating
from strop.model.forest import always
from strop.model.forward import Scoring, call_on, input_device, install, pools_itself, vocab_size
from strop.model.layout import build_batch
from strop.model.rope import longest_plain_row
from strop.model.router import has_router
from strop.model.twin import SHRUNK, boundaries, twin_of
from strop.model.virtual_tokens import WHY_PADDED, has_virtual_tokens
from strop.model.wrappers import base_model, check_decoder_only, decoder_of
from strop.plain_text import first_line
from strop.records import Batch, Example, Scores, Want

logger = logging.getLogger(__name__)

_NUMBERS_POSITIONS = "create_position_ids_from_input_ids"
"""The method of embeddings (RoBERTa's and its kin's) that count from the padding id on."""

_TOLERANCE = {8: 1e-6, 4: 1e-3, 2: 5e-2}  # relative, by bytes of precision
_HEAD_TOLERANCE = {8: 1e-6, 4: 2e-5, 2: 5e-2}  # of one output layer on the same states
_OTHER_RANKS = re.compile("gloo|NCCL|monitoredBarrier")
"""What an error says that comes from other processes and not from the model."""
FLAT_LAYOUTS = ("tree", "packed")
_WITHIN_A_TOKEN = ("mlp", "moe")
"""Kinds of layers in which tokens do not meet."""


@dataclass(frozen=True, slots=True)
class LayoutChoice:
    """The layout a model is scored in.

    Attributes:
        name: "tree" or "padded".
        reason: one sentence for the log.
        own_head: whether log-probabilities must come from the model's own logits, because its output layer does
            something that `lm_head` cannot describe.
        up_to: tokens of the longest sequence that it holds for, None for any; batches with longer ones are padded,
            because rotary positions depend on the length there.
    """

    name: str
    reason: str
    own_head: bool = False
    up_to: int | None = None


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
    return replace(kept, name="padded", reason=WHY_PADDED) if has_virtual_tokens(model) else kept


def accepted_layout(model: nn.Module, asked: str, examples: Sequence[Example]) -> str:
    """The layout that was asked for, or the model's own for "auto", for a batch of these examples.

    Raises:
        ConfigError: rows would see one another, or positions be wrong, in the layout that was asked for.
    """
    choice = layout_of(model)
    name, why = choice.name, choice.reason
    if choice.up_to is not None and (longest := max(map(_longest, examples), default=0)) > choice.up_to:
        name, why = "padded", f"a row has {longest} tokens, and {why}"
    if asked in FLAT_LAYOUTS and name == "padded":
        raise ConfigError(
            f"layout={asked!r} gives {type(base_model(model)).__name__} other numbers than one row at a time: "
            f"{why}. Use layout='auto' or layout='padded'."
        )
    return name if asked == "auto" else asked


def confirm_layout(model: nn.Module, examples: Sequence[Example], score: Callable[[Batch], Scores]) -> str | None:
    """Hold the layout against real rows, one at a time; where they differ, the model is scored padded from then on.

    Two completions of the longest tree and one of another are enough to see prompts and rows that leak, and take less
    memory than the batch they come from.

    Args:
        examples: of the first batch.
        score: hidden states of a batch (`Want.HIDDEN`) under the model, without gradient.

    Returns:
        What differs, or None.
    """
    inner, choice = base_model(model), layout_of(model)
    ordered = sorted(examples, key=_longest)
    some = [replace(ordered[-1], completions=ordered[-1].completions[:2], loss_mask=None)]
    if len(ordered) > 1:
        some.append(replace(ordered[0], completions=ordered[0].completions[:1], loss_mask=None))
    if choice.name == "padded" or accepted_layout(model, "auto", some) == "padded":
        return None
    device = input_device(inner)
    batches = [build_batch(some, choice.name, want=Want.HIDDEN, device=device)]
    batches += [build_batch([row], "padded", want=Want.HIDDEN, device=device) for row in _alone(some)]
    with _leaving_no_trace(inner, device):
        states: list[Any] = [score(batch).hidden for batch in batches]
    difference = float(_errors(states[0], torch.cat(states[1:])).mean()) if len(states[0]) else 0.0
    if difference <= _TOLERANCE[_precision(inner, device)]:
        return None
    problem = f"{choice.name} and single rows give different hidden states (relative difference {difference:.1e})"
    inner._strop_layout = replace(choice, name="padded", reason=f"on the first rows, {problem}")
    return problem


@contextmanager
def _leaving_no_trace(model: nn.Module, device: torch.device) -> Iterator[None]:
    with torch.no_grad(), evaluating(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _longest(example: Example) -> int:
    return len(example.prompt_ids) + max(map(len, example.completions))


def _choose(model: nn.Module, inner: Any) -> LayoutChoice:
    check_decoder_only(inner.config, type(inner).__name__)
    if pools_itself(inner):
        return LayoutChoice("padded", "it pools the sequence in its own way")
    if any(hasattr(module, _NUMBERS_POSITIONS) for module in inner.modules()):
        raise SetupError(
            f"{type(inner).__name__} numbers positions by its padding token, so rows cannot be laid out beside one "
            "another as it would see them. Choose an architecture whose first position is 0."
        )
    # A sharded model must be entered through the wrapper that gathers its weights.
    runner = model if type(model).__name__ in ("FullyShardedDataParallel", "DeepSpeedEngine") else inner
    device = input_device(inner)
    with _leaving_no_trace(inner, device):
        with _refusing(inner, "cannot compute three short rows of text"):
            padded = _hidden(runner, "padded")
            precision = _precision(inner, device)
            _check_causal(inner, padded, precision)
            own_head = _has_own_head(runner, inner, precision)
        reason = _why_not_tree(runner, inner, padded, precision)
        if reason is not None:
            _check_padded(runner, inner, padded, precision)
    if reason is not None:
        return LayoutChoice("padded", reason, own_head)
    reason, up_to = "every layer's attention takes shared prompts", longest_plain_row(decoder_of(inner).config)
    if up_to is not None:
        reason += f"; rotary positions depend on the length of rows above {up_to} tokens, whose batches are padded"
    return LayoutChoice("tree", reason, own_head, up_to)


def _precision(model: Any, device: torch.device) -> int:
    """Bytes of the narrowest floating-point numbers the model computes with, 2, 4 or 8."""
    sizes = {parameter.dtype.itemsize for parameter in model.parameters() if parameter.is_floating_point()}
    if torch.is_autocast_enabled(device.type) or "_original_forward" in vars(model):  # accelerate's mixed precision
        sizes.add(2)
    return max(2, min(sizes, default=4))


def _why_not_tree(runner: nn.Module, inner: Any, padded: torch.Tensor, precision: int) -> str | None:
    config = inner.config.get_text_config()
    with attention.observed() as calls:
        try:
            tree = _hidden(runner, "tree")
        except Exception as error:  # whatever foreign code raises on arguments it does not know
            return f"its layers cannot be called on a flat row ({type(error).__name__}: {first_line(error)})"
    types = getattr(config, "layers_block_type", None) or getattr(config, "layer_types", None) or []
    layers = (getattr(config, "num_hidden_layers", None) or 0) - sum(kind in _WITHIN_A_TOKEN for kind in types)
    attending, convolving, running = (
        sum(kind == name for kind, _ in calls) for name in ("attention", "convolution", "state")
    )
    if not {attending, convolving, attending + convolving, attending + running} & {layers}:  # some layers do both
        served = attending + max(convolving, running)
        return f"{served} of its {layers} layers use transformers' attention interface or its convolutions"
    if types.count("sliding_attention") > sum(window is not None for _, window in calls):
        return "its sliding-window layers do not tell the attention function their window"
    difference = _typical(_errors(tree, padded), precision)
    if not difference <= _TOLERANCE[precision]:
        return f"tree and padded rows give different hidden states (relative difference {difference:.1e})"
    return why_not_far(decoder_of(inner))


def why_not_far(decoder: Any) -> str | None:
    """What goes wrong in the tree layout beyond the distances that the config names."""
    named, difference, cause = _far_apart(decoder, "tree")
    if cause:
        return f"its config names {named}, and rows beyond could not be tried ({cause})"
    if difference <= _TOLERANCE[4]:
        return None
    return f"its config names {named}, and beyond tree and padded rows differ (relative difference {difference:.1e})"


def _far_apart(decoder: Any, layout: str) -> tuple[str, float, str]:
    """The distances that the config names, how far rows beyond are in a layout from rows alone, on a twin of the
    layers, and why that could not be tried."""
    named = ", ".join(f"{name}={value}" for name, value in boundaries(decoder.config).items())
    if not named:
        return "", 0.0, ""
    twin, trees = twin_of(decoder), _long_trees()
    if twin is None:
        return named, 0.0, "its layers cannot be made smaller"
    try:
        alone = torch.cat([_twin_states(twin, "padded", [row]) for row in _alone(trees)])
        return named, float(_errors(_twin_states(twin, layout, trees), alone).max()), ""
    except Exception as error:  # whatever foreign code raises on rows and sizes it does not know
        return named, 0.0, first_line(error)


def _alone(trees: Sequence[Example]) -> list[Example]:
    """Every row as a tree of its own."""
    return [replace(tree, completions=[ids]) for tree in trees for ids in tree.completions]


def _long_trees() -> list[Example]:
    """Rows that are several shrunk distances long."""
    ids = [(37 * i + 11) % 128 for i in range(6 * SHRUNK)]
    branches = [ids[1 : SHRUNK // 2], ids[2 : 3 * SHRUNK]]
    trees = [Example(ids[: 3 * SHRUNK + 3], branches), Example(ids[5:9], [ids[7 : 3 * SHRUNK]])]
    return [*trees, Example(ids[: SHRUNK + 2], [ids[: SHRUNK + 1]])]


def _twin_states(twin: Any, layout: str, trees: list[Example]) -> torch.Tensor:
    """Hidden states of a twin, (N, H)."""
    batch = build_batch(trees, layout, want=Want.HIDDEN, shares=always)
    with torch.no_grad():
        hidden = call_on(twin, twin, batch).last_hidden_state
    return hidden.reshape(-1, hidden.shape[-1])[batch.source]


def _errors(found: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Relative difference of every row, (N, H) and (N, H) -> (N,)."""
    found, right = found.cpu().double(), right.cpu().double()
    return (found - right).norm(dim=1) / right.norm(dim=1).clamp_min(1e-30)


def _small_trees(model: Any) -> list[Example]:
    vocab = vocab_size(model) or 16
    ids = [(7 * i + 3) % vocab for i in range(9)]
    # Four rows of four tokens: their logits are all there at once.
    return [Example(ids[:2], [ids[3:5], ids[5:8]]), Example(ids[2:4], [ids[6:9]]), Example(ids[:1], [ids[7:9]])]


def _small_batch(model: Any, layout: str) -> Batch:
    return build_batch(_small_trees(model), layout, want=Want.HIDDEN, shares=always, device=input_device(model))


def _hidden(model: Any, layout: str) -> torch.Tensor:
    return _states(model, _small_batch(base_model(model), layout))


def _states(model: Any, batch: Batch) -> torch.Tensor:
    return model(scoring=Scoring(batch, Want.HIDDEN))["hidden"]  # (N, H)


@contextmanager
def _refusing(model: Any, what: str) -> Iterator[None]:
    """Turn whatever a model's own layers raise into a refusal of the model."""
    try:
        yield
    except (StropError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if _OTHER_RANKS.search(str(error)):
            raise
        raise SetupError(
            f"{type(model).__name__} {what}: its layers raise {type(error).__name__} "
            f"({first_line(error).rstrip('.')[:300]}). Change its config if that is what it asks for, or choose "
            "another architecture."
        ) from error


def _check_padded(runner: nn.Module, inner: Any, padded: torch.Tensor, precision: int) -> None:
    """Refuse a model whose numbers depend on how its rows are padded, or whose layers cannot be trained on them."""
    name, device = type(inner).__name__, input_device(inner)
    rows = _alone(_small_trees(inner))
    batches = [build_batch([row], "padded", want=Want.HIDDEN, device=device) for row in rows]
    if _predicts(inner):  # the yardstick is a call without mask and positions
        padded = _own_logits(runner, inner)
        alone = [runner(input_ids=batch.input_ids, use_cache=False).logits[0, batch.source] for batch in batches]
    else:
        alone = [_states(runner, batch) for batch in batches]
    difference = _typical(_errors(padded, torch.cat(alone)), precision)
    beyond, most = "", _TOLERANCE[precision]
    if difference <= most:
        named, difference, _ = _far_apart(decoder_of(inner), "padded")
        beyond = f" beyond {named}, on a random model of its config with the distances shortened"
        most = _TOLERANCE[4]
    if not difference <= most:
        raise SetupError(
            f"{name} gives other numbers for a row that is padded than for the row alone (relative difference "
            f"{difference:.1e}{beyond}), so its log-probabilities are not those of the text. Choose another "
            "architecture, or a version of transformers that mends it."
        )
    inner.train()
    with _refusing(inner, "cannot be trained on three short rows of text"):
        _hidden(runner, "padded")
    inner.eval()


def _check_causal(model: Any, padded: torch.Tensor, precision: int) -> None:
    """Refuse a language model that looks ahead: its states before a token know the token."""
    if not _predicts(model):
        return
    ends = padded[0:1], padded[2:3]  # of one prompt, before two completions
    if not float(_errors(*ends)) <= _TOLERANCE[precision]:
        advice = (
            "Its experts are chosen so, if not by its attention; choose another architecture."
            if has_router(model.config)
            else "Choose a causal language model; if it is one that can be both, set is_decoder=True in its config."
        )
        raise SetupError(f"{type(model).__name__} looks at tokens that come later, so it predicts nothing. {advice}")


def _has_own_head(runner: nn.Module, model: Any, precision: int) -> bool:
    """Whether the head we compute differs from the model's own logits; False where there is no such head."""
    if not _predicts(model):
        return False
    batch = _small_batch(model, "padded")
    try:
        ours = runner(scoring=Scoring(batch, Want.LOGPS))["logps"]
    except RuntimeError:  # the output layer does not take what the layers give
        return True
    own = _own_logits(runner, model).to(ours.dtype).log_softmax(-1)
    own = own.gather(1, batch.targets.to(own.device).unsqueeze(1)).squeeze(1)
    error = (ours - own).abs() / (1 + own.abs())
    return _typical(error, precision) > _HEAD_TOLERANCE[precision]


def _own_logits(runner: nn.Module, model: Any) -> torch.Tensor:
    """Logits of the small batch, padded, by the model's own forward, (N, V)."""
    batch = _small_batch(model, "padded")
    logits = call_on(runner, decoder_of(model), batch).logits
    return logits.reshape(-1, logits.shape[-1])[batch.source]


def _predicts(model: Any) -> bool:
    """Whether there is a language-model head."""
    return getattr(model, "get_output_embeddings", lambda: None)() is not None


def _typical(errors: torch.Tensor, precision: int) -> float:
    """The largest error; in half precision the median, because a router may flip on a single token."""
    return float(errors.median() if precision == 2 else errors.max())
