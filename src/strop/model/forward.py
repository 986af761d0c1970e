"""The scoring forward: a laid-out batch and a model in, per-token quantities out.

Scoring goes through `model(...)` itself, so that the hooks of DDP, FSDP, DeepSpeed and PEFT run: `install` teaches the
model's class a keyword, `scoring=`, under which `forward` runs the layers on a laid-out batch and then the heads.
Without the keyword the class does what it always did.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from strop.errors import ConfigError, SetupError
from strop.model.attention import KEYWORD, tree_attention_on
from strop.model.embedding_noise import noisy_embeddings
from strop.model.head import HEAD_KINDS, score_logits, score_tokens
from strop.model.heads import classify_rows, scalar_head, score_rows
from strop.model.layout import token_copies
from strop.model.lm_head import lm_head_of
from strop.model.recurrent import teach
from strop.model.rope import rows_alone
from strop.model.router import BEHIND_LEARNED_TOKENS, has_router, router_loss
from strop.model.virtual_tokens import VirtualTokens, has_virtual_tokens
from strop.model.wrappers import base_model, decoder_of, is_peft, unwrap
from strop.records import Batch, Scores, Want


class Scoring:
    """What one scoring forward is asked for; travels as the keyword argument `scoring` of `model(...)`.

    A plain class on purpose: wrappers rebuild dataclasses and containers among a module's arguments.
    """

    def __init__(
        self,
        batch: Batch,
        want: Want,
        *,
        temperature: float = 1.0,
        head_bytes: int | None = None,
        grad_entropy: bool = False,
        aux_loss: bool = False,
        own_head: bool = False,
        noise_alpha: float = 0.0,
    ) -> None:
        self.batch = batch
        self.want = want
        self.temperature = temperature
        self.head_bytes = head_bytes
        self.grad_entropy = grad_entropy
        self.aux_loss = aux_loss
        self.noise_alpha = noise_alpha  # NEFTune's, in training mode
        self.own_head = own_head  # let the model compute its logits itself (see `select`)
        self.virtual: VirtualTokens | None = None  # learned tokens before every row, on the way through PEFT's model


def score_batch(model: nn.Module, batch: Batch, want: Want = Want.LOGPS, **options: Any) -> Scores:
    """As `score`, for a batch that is laid out already (`build_batch` with the same `want`).

    Args:
        batch: on the device of the model's embeddings.
        options: temperature, head_bytes, grad_entropy, aux_loss as for `score`; noise_alpha, NEFTune's noise.
    """
    install(model)
    out = model(scoring=Scoring(batch, want, **options))
    if not isinstance(out, dict) or "strop" not in out:
        raise SetupError(
            f"{type(model).__name__} did not run strop's scoring forward: something replaced the forward of "
            f"{type(base_model(model)).__name__}. Call strop.model.install(model) before wrapping the model."
        )
    out.pop("strop")
    return Scores(
        segment=batch.segment, num_completions=batch.num_completions, prompt_segment=batch.prompt_segment, **out
    )


def install(model: nn.Module) -> None:
    """Teach the model's class the keyword `scoring`; safe to call again.

    Call it before the model is wrapped for mixed precision, so that the wrapper's autocast surrounds scoring too.
    """
    inner = base_model(model)
    _teach_class(inner)
    if has_virtual_tokens(model):
        _teach_class(unwrap(model))
    replaced = vars(inner).get("forward")
    if replaced is not None and not _reaches_scoring(replaced):
        # Set on the object before the class knew the keyword (accelerate's device hooks do that): go around it.
        around = functools.partial(_forward_or_score, replaced, inner)  # which copies of the model bind to themselves
        around.strop_scoring = True  # type: ignore[attr-defined]
        inner.forward = functools.update_wrapper(around, replaced)


def _teach_class(model: nn.Module) -> None:
    owner: Any = next(cls for cls in type(model).__mro__ if "forward" in vars(cls))
    forward = owner.forward
    if getattr(forward, "strop_scoring", False):
        return

    @functools.wraps(forward)
    def taught(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return _forward_or_score(functools.partial(forward, self), self, *args, **kwargs)

    taught.strop_scoring = True  # type: ignore[attr-defined]
    owner.forward = taught


def _forward_or_score(
    forward: Callable[..., Any], model: Any, *args: Any, scoring: Scoring | None = None, **kwargs: Any
) -> Any:
    """What the model's forward gives, or its scoring pass; a PEFT model brings the learned tokens of its adapter."""
    if scoring is None:
        return forward(*args, **kwargs)
    if not is_peft(model):
        return run_scoring(model, scoring)
    if not has_virtual_tokens(model):
        return forward(*args, scoring=scoring, **kwargs)
    scoring = copy.copy(scoring)
    scoring.virtual = VirtualTokens(model)
    return model.base_model(scoring=scoring)


def _reaches_scoring(forward: Any) -> bool:
    while forward is not None:
        if getattr(forward, "strop_scoring", False):
            return True
        forward = getattr(forward, "__wrapped__", None)
    return False


def run_scoring(model: Any, scoring: Scoring) -> dict[str, Any]:
    """The scoring forward of a transformers model: layers once, then every head that was asked for."""
    with noisy_embeddings(model, scoring.batch, scoring.noise_alpha):
        return _scored(model, scoring)


def _scored(model: Any, scoring: Scoring) -> dict[str, Any]:
    batch, want = scoring.batch, scoring.want
    if want & Want.SCORE and scalar_head(model) is None:
        return {"strop": True, "scores": _pooled_scores(model, scoring)}
    out: dict[str, Any] = {"strop": True}
    if scoring.own_head and want & HEAD_KINDS:
        out |= _own_head_scores(model, scoring)
        want = want & ~HEAD_KINDS
        if not want and not scoring.aux_loss:
            return _of_each(out, batch)
    output = _run_decoder(model, scoring)
    hidden = output.last_hidden_state  # (1, T, H) or (S, T, H)
    if scoring.virtual is not None:
        hidden = scoring.virtual.behind(hidden)
    hidden = hidden.reshape(-1, hidden.shape[-1])
    rows = hidden[:0]
    if want & ~Want.SCORE:
        rows = hidden.index_select(0, _read(batch)[0].to(hidden.device))  # (K + M, H)
    if want & HEAD_KINDS:
        out |= _head_scores(model, rows, scoring)
    if want & Want.HIDDEN:
        out["hidden"] = rows
    if want & Want.VALUE:
        out["values"] = score_rows(model, rows)
    if want & Want.STEP:
        out["step_logits"] = classify_rows(model, rows)
    if want & Want.SCORE:
        out["scores"] = score_rows(model, hidden.index_select(0, batch.last.to(hidden.device)))
    if scoring.aux_loss:
        out["aux_loss"] = router_loss(output.router_logits, token_copies(batch), model.config)
    return _of_each(out, batch)


_PER_TOKEN = ("logps", "entropy", "top1", "mean_logit", "log_square", "values", "step_logits", "hidden")


def _read(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Sources and targets of the tokens that a head reads, (K + M,) each: the scored ones, once where several rows
    share one, and behind them those of prompts."""
    sources, targets = batch.source, batch.targets
    if batch.distinct is not None:
        sources, targets = sources[batch.distinct], targets[batch.distinct]
    if batch.prompt_source is not None and batch.prompt_targets is not None:
        sources, targets = torch.cat([sources, batch.prompt_source]), torch.cat([targets, batch.prompt_targets])
    return sources, targets


def _of_each(out: dict[str, Any], batch: Batch) -> dict[str, Any]:
    """What was computed once for a token that several rows share, given to each of them: (K + M, ...) -> (N, ...), and
    log-probabilities of prompt tokens apart, (M,).

    So whatever a loss makes of a row, the token gets the sum of it over its rows as its gradient.
    """
    if batch.prompt_source is not None:
        count = len(batch.targets if batch.distinct is None else batch.distinct)
        if "logps" in out:
            out["prompt_logps"] = out["logps"][count:]
        out |= {name: out[name][:count] for name in _PER_TOKEN if name in out}
    if batch.alike is None:
        return out
    spread = {name: out[name].index_select(0, batch.alike.to(out[name].device)) for name in _PER_TOKEN if name in out}
    return out | spread


def _run_decoder(model: Any, scoring: Scoring) -> Any:
    decoder = decoder_of(model)
    extra = {}
    if scoring.aux_loss:
        if scoring.virtual is not None:
            raise ConfigError(BEHIND_LEARNED_TOKENS)
        if not has_router(model.config):
            raise ConfigError(f"{type(model).__name__} has no router, so it has no load-balancing loss (aux_loss).")
        extra["output_router_logits"] = True
    return call_on(decoder, decoder, scoring.batch, scoring.virtual, **extra)


def call_on(
    function: Callable[..., Any], decoder: nn.Module, batch: Batch, virtual: VirtualTokens | None = None, **extra: Any
) -> Any:
    """Call the decoder, or the forward of a model around it, on a laid-out batch, behind learned tokens if any."""
    if batch.layout != "padded" and virtual is None:
        teach(decoder)
        with tree_attention_on(decoder), rows_alone(decoder, batch):
            inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, KEYWORD: batch.segments}
            return function(**inputs, use_cache=False, **extra)
    inputs = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "position_ids": batch.position_ids,
        "use_cache": False,
    }
    if virtual is not None:
        inputs = virtual.before(inputs, batch)
    known = inspect.signature(function.forward if isinstance(function, nn.Module) else function).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        inputs = {name: value for name, value in inputs.items() if name in known}
    with rows_alone(decoder, batch):
        return function(**inputs, **extra)


def _head_scores(model: Any, rows: torch.Tensor, scoring: Scoring) -> dict[str, torch.Tensor]:
    """The language-model head on the rows that are read, (K + M, H)."""
    targets = _read(scoring.batch)[1].to(rows.device)
    options: dict[str, Any] = {"temperature": scoring.temperature, "grad_entropy": scoring.grad_entropy}
    head = lm_head_of(model)
    return score_tokens(head, rows, targets, scoring.want, head_bytes=scoring.head_bytes, **options)


def _own_head_scores(model: Any, scoring: Scoring) -> dict[str, torch.Tensor]:
    """Log-probabilities from the logits of the model's own forward, for heads that `lm_head` cannot describe."""
    batch = scoring.batch
    wanted, targets = _read(batch)
    forward = own_forward(model)
    flat = batch.layout != "padded" and "logits_to_keep" in inspect.signature(forward).parameters
    kept = {"logits_to_keep": wanted} if flat else {}
    logits = call_on(forward, decoder_of(model), batch, scoring.virtual, **kept).logits
    if scoring.virtual is not None:
        logits = scoring.virtual.behind(logits)
    logits = logits.reshape(-1, logits.shape[-1])
    rows = logits if flat else logits.index_select(0, wanted.to(logits.device))  # (K + M, V)
    options: dict[str, Any] = {"temperature": scoring.temperature, "grad_entropy": scoring.grad_entropy}
    return score_logits(rows, targets.to(rows.device), scoring.want, **options)


def own_forward(model: Any) -> Callable[..., Any]:
    """The forward of the model's class. Inside a forward `model(...)` would run hooks, and enter autocast, twice."""
    return functools.partial(type(model).forward, model)


def pools_itself(model: Any) -> bool:
    """Whether a sequence classifier reads more than the last token's state (BERT and its kin)."""
    return type(model).__name__.endswith("ForSequenceClassification") and scalar_head(model) is None


def _pooled_scores(model: Any, scoring: Scoring) -> torch.Tensor:
    """Scores of a classifier with its own pooling, one padded row per completion, (S,)."""
    batch = scoring.batch
    if scoring.virtual is not None:
        raise SetupError(
            f"{type(model).__name__} pools a row in its own way, and learned tokens would be in it. Use LoRA."
        )
    if not pools_itself(model) or batch.attention_mask is None:
        score_rows(model, batch.input_ids)  # raises: there is no scalar head
    logits = own_forward(model)(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits  # (S, labels)
    if logits.shape[-1] != 1:
        raise SetupError(
            f"{type(model).__name__} gives {logits.shape[-1]} numbers per completion; a reward is one. "
            "Load it with num_labels=1."
        )
    return logits.squeeze(-1).to(torch.promote_types(logits.dtype, torch.float32))


def vocab_size(model: Any) -> int | None:
    """How many token ids the model's embeddings know; an adapter's wrapper has them inside."""
    layers = model.get_input_embeddings().modules()
    sizes = (layer.num_embeddings for layer in layers if hasattr(layer, "num_embeddings"))
    return next(sizes, getattr(model.config.get_text_config(), "vocab_size", None))


def input_device(model: Any) -> torch.device:
    """Where token ids have to be."""
    embeddings = model.get_input_embeddings()
    device = next(embeddings.parameters()).device
    if device.type == "meta":  # offloaded: accelerate's hook brings the weights when the layer is called
        device = torch.device(getattr(getattr(embeddings, "_hf_hook", None), "execution_device", "cpu"))
    return device
