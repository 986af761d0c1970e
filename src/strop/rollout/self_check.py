"""Whether the native engine serves a model: asked of the model itself, not of a list of names.

A few tokens go through prompts, one behind a beginning of the other, and decode steps, with shared and with forked
prompts, and the logits are compared with the model's own forward pass over the whole sequence. An architecture whose
attention is not where we think it is (linear attention, state spaces, ALiBi, keys shared between layers, ...) gives
other logits or an exception, and the transformers engine takes over. Windows that these tokens do not reach are tried
on a twin (`strop.model.select`).
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from strop.errors import SetupError
from strop.model.forest import always
from strop.model.rope import LENGTH_DEPENDENT, longest_plain_row, rope_parts
from strop.model.select import why_not_far
from strop.model.twin import boundaries
from strop.model.wrappers import decoder_of, unwrap
from strop.plain_text import first_line
from strop.rollout import limits
from strop.rollout.beginnings import Beginnings
from strop.rollout.decoder import Decoder
from strop.rollout.rollout_mode import rollout_attention, sampling_mode, transformers_model
from strop.rollout.scheduler import Row, Scheduler

_KNOWN_LAYERS = frozenset({"full_attention", "sliding_attention"})
# Of the largest logit; half precision 0.05. Some models take their softmax in float32 even where weights are float64.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}
_LONGEST_CHECK = 600  # tokens: a longer sliding window is not reached by the check


def why_not_native(model: nn.Module, *, autocast: torch.dtype | None = None) -> str | None:
    """The reason why the native engine cannot serve `model`, or None where it can."""
    try:
        base = transformers_model(model)
    except SetupError as error:
        return str(error).rstrip(".")
    return _declared_problem(model, base) or _measured_problem(unwrap(model), base, autocast)


def _declared_problem(model: nn.Module, base: PreTrainedModel) -> str | None:
    """What the config already rules out."""
    config = base.config.get_text_config(decoder=True)
    if limits.is_sharded(model):
        return "its weights are spread over processes, which must then all take the same number of steps"
    if base.config.is_encoder_decoder:
        return "it is an encoder-decoder model"
    if len(set(getattr(base, "hf_device_map", {"": 0}).values())) > 1:
        return "its layers are spread over several devices"
    unknown = set(getattr(config, "layer_types", None) or ()) - _KNOWN_LAYERS
    if unknown:
        return f"it has layers of type {sorted(unknown)}"
    kind = next((k for k in (part.get("rope_type") for part in rope_parts(config)) if k in LENGTH_DEPENDENT), None)
    if kind is not None:
        return f"its rotary positions ('{kind}') depend on the longest row of the batch"
    return why_not_far(decoder_of(base))


def _measured_problem(model: nn.Module, base: PreTrainedModel, autocast: torch.dtype | None) -> str | None:
    """Whether rollout logits differ from the model's own."""
    try:
        with ExitStack() as stack:
            stack.enter_context(sampling_mode([model]))
            if autocast is not None:
                stack.enter_context(torch.autocast(base.device.type, autocast))
            prompts, rows = _check_rows(base)
            whole = [torch.tensor([prompts[row.prompt] + row.ids], device=base.device) for row in rows]
            wanted = [model(input_ids=ids, use_cache=False).logits[0, -2:].double() for ids in whole]  # (2, V) each
            stack.enter_context(rollout_attention([model]))
            for share in (True, False):
                problem = _compare(model, base, prompts, rows, wanted, share, autocast)
                if problem is not None:
                    return problem
    except Exception as error:
        # Whatever a foreign architecture raises here means the same: this engine is not for it.
        return f"the check of its attention failed with {type(error).__name__}: {first_line(error)[:200]}"
    return None


def _check_rows(base: PreTrainedModel) -> tuple[list[list[int]], list[Row]]:
    """Two prompts that begin alike, three rows that have written two tokens each; longer than a short window."""
    vocab = limits.vocab_size(base)
    config = base.config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None) or 0
    length = window + 3 if window + 3 <= _LONGEST_CHECK else 7
    room = limits.position_limit(base)
    length = max(1, min(length, (room or length + 3) - 3))
    first = [(5 * i + 3) % vocab for i in range(length)]
    prompts = [first, first[: length // 4] + [(11 * i + 1) % vocab for i in range(max(1, length // 4))]]
    rows = []
    for sample, prompt in enumerate((0, 1, 0)):
        ids = [(7 * sample + 2) % vocab, (3 * sample + 5) % vocab]
        row = Row(prompt, prompt, sample, len(prompts[prompt]), 3, torch.zeros(0).numpy(), ids=ids, logps=[0.0, 0.0])
        rows.append(row)
    return prompts, rows


def _compare(
    model: nn.Module,
    base: PreTrainedModel,
    prompts: list[list[int]],
    rows: list[Row],
    wanted: list[torch.Tensor],
    share: bool,
    autocast: torch.dtype | None,
) -> str | None:
    """Feed the rows' two tokens step by step and compare the logits."""
    longest = max(map(len, prompts)) + 3
    decoder = Decoder(model, len(rows), longest)
    scheduler = Scheduler([], len(rows), share)
    parts = Beginnings(prompts, always)
    decoder.prefill([*parts.missing(0, ()), *parts.missing(1, parts.parts.keys() - {1})], base.device)
    if not share:
        slots = {number: [s for s, row in enumerate(rows) if row.prompt == number] for number in range(len(prompts))}
        decoder.cache.fork(slots, base.device)
    # accelerate keeps the forward that it wrapped in autocast under this name.
    dtype = torch.bfloat16 if autocast is not None or hasattr(base, "_original_forward") else base.dtype
    tolerance = _TOLERANCE.get(dtype, 0.05)
    for step in range(2):
        scheduler.slots = [replace(r, ids=r.ids[: step + 1], logps=r.logps[: step + 1]) for r in rows]
        ids, plan = scheduler.plan(base.device)
        logits = decoder.step(ids, plan).double()  # (rows, V)
        for line, expected in zip(logits, wanted, strict=True):
            worst = float((line - expected[step]).abs().max())
            scale = float(expected[step].abs().max())
            if not worst <= tolerance * max(scale, 1e-3):
                return f"its attention gives other logits in the rollout (off by {worst:.2g} at size {scale:.2g})"
    return None


def right_generation(model: nn.Module, base: PreTrainedModel) -> tuple[bool, bool]:
    """Under which (use_cache, equal_lengths) `generate` gives the logits of the model's own forward pass.

    Left padding is seen by states that run over it and by positions that count it (linear attention, RWKV, BART and
    its kin): rows of equal length are decoded together then, as where rotary positions depend on the longest row.
    Some caches are wrong, of some only beyond a block; then every step computes the whole row.

    Raises:
        SetupError: no way of calling `generate` does.
    """
    config = decoder_of(base).config
    vocab, plain = limits.vocab_size(base), longest_plain_row(config)
    most = min(length for length in (limits.position_limit(base), plain, _LONGEST_CHECK) if length is not None) - 4
    long = 3 + max([8, *(length for length in boundaries(config).values() if length + 3 <= most)])
    lengths = ((7, long), (5, long), (11, 2))
    rows = [[(step * i + 3) % vocab for i in range(max(1, min(length, most)))] for step, length in lengths]
    wanted = [model(input_ids=torch.tensor([[*row, 1, 1]], device=base.device), use_cache=False) for row in rows]
    logits = [out.logits[0, -3:].double() for out in wanted]  # (3, V) each
    tolerance = 0.1 * _TOLERANCE.get(base.dtype, 0.5) * max(float(torch.stack(logits).abs().max()), 1e-3)
    problem = ""
    for use_cache in (True, False):
        for together in ((0, 2), (0, 1)) if plain is None else ((0, 1),):
            try:
                found = _generated_logits(model, [rows[i] for i in together], use_cache)  # (2, 3, V)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever foreign code raises: this way is not for the model
                problem = f" ({type(error).__name__}: {first_line(error)[:200]})"
                continue
            if float((found - torch.stack([logits[i] for i in together])).abs().max()) <= tolerance:
                return use_cache, together == (0, 1)
    raise SetupError(
        f"{type(base).__name__}.generate gives other logits than the model's forward pass, with and without a cache, "
        f"so nothing that is sampled with it can be learned from{problem}. Use another version of transformers, or "
        "engine='vllm'."
    )


def _generated_logits(model: nn.Module, prompts: list[list[int]], use_cache: bool) -> torch.Tensor:
    """Logits of three steps of `generate`, (rows, 3, V), which goes on with the id 1 each time."""
    device, width = next(model.parameters()).device, max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    settings = GenerationConfig(
        max_new_tokens=3, do_sample=False, pad_token_id=0, eos_token_id=None, return_dict_in_generate=True,
        output_logits=True, use_cache=use_cache,
    )  # fmt: skip
    out = model.generate(  # type: ignore[operator]
        input_ids=ids, attention_mask=mask, generation_config=settings, prefix_allowed_tokens_fn=lambda *_: [1]
    )
    return torch.stack(out.logits, 1).double()
