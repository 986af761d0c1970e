"""The waist gives the log-probabilities and gradients of plain transformers, one row at a time, for every layout."""

from __future__ import annotations

import copy
import pickle
import types
from typing import Any

import pytest
import torch
from tests.support.random_trees import random_examples
from torch.utils._python_dispatch import TorchDispatchMode

from strop.errors import ConfigError, DataError, SetupError
from strop.model import apply_peft, build_batch, disable_dropout, install, layout_of, score, score_batch
from strop.records import Example, Want
from strop.testing.tiny import VOCAB, tiny_model

SHARING = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "gpt2", "qwen3_moe", "opt", "gpt_oss")
OTHERS = ("cohere", "granite", "bloom", "mamba")
LAYOUTS = ("tree", "packed", "padded")
EVERYTHING = Want.LOGPS | Want.ENTROPY | Want.TOP1 | Want.MEAN_LOGIT | Want.LOG_SQUARE


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


def trees() -> list[Example]:
    """Short ones that fit a window of 8, long ones that do not; prompts of 0 and 1 tokens, completions of 1; masks."""
    return [
        *random_examples(1, completions=(2, 3), prompt=(1, 3), length=(1, 3)),
        *random_examples(2, completions=(1, 3), prompt=(4, 9), length=(3, 8)),
        *random_examples(3, prompt=(0, 1), length=(1, 5), masked=True),
    ]


@pytest.mark.parametrize("arch", SHARING)
def test_float64_equals_plain_rows(arch: str, model_of: Any, row_logps: Any, grads_of: Any) -> None:
    model, examples = model_of(arch), trees()
    expected = row_logps(model, examples)
    expected_grads = grads_of(model, expected)
    assert layout_of(model).name == "tree"
    for layout in LAYOUTS:
        logps = score(model, examples, layout=layout).logps
        assert torch.allclose(logps, expected, rtol=0, atol=1e-10), layout
        assert relative(grads_of(model, logps), expected_grads) < 1e-10, layout


@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen3_moe"])
def test_float32_equals_plain_rows(arch: str, model_of: Any, row_logps: Any, grads_of: Any) -> None:
    model, examples = model_of(arch, dtype=torch.float32), trees()
    expected = row_logps(model, examples)
    expected_grads = grads_of(model, expected)
    for layout in LAYOUTS:
        logps = score(model, examples, layout=layout).logps
        assert relative(logps, expected) < 1e-4, layout
        assert relative(grads_of(model, logps), expected_grads) < 1e-4, layout


@pytest.mark.parametrize("arch", OTHERS)
def test_architectures_with_other_heads_or_without_sharing(
    arch: str, model_of: Any, row_logps: Any, grads_of: Any
) -> None:
    model, examples = model_of(arch), trees()
    tolerance = 1e-5 if arch == "mamba" else 1e-10  # its scan and its logits are float32 whatever the model is
    expected = row_logps(model, examples).double()
    logps = score(model, examples).logps
    assert torch.allclose(logps, expected, rtol=0, atol=tolerance)
    assert relative(grads_of(model, logps), grads_of(model, expected)) < tolerance
    assert not layout_of(model).own_head


def test_only_fitting_windows_use_the_fast_path(model_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from strop.model import attention

    calls: list[str] = []
    dense = attention.dense_attention
    monkeypatch.setattr(attention, "dense_attention", lambda *a, **k: calls.append("dense") or dense(*a, **k))
    model = model_of("mistral")
    layout_of(model)
    calls.clear()
    score(model, [Example([1, 2, 3], [[4, 5], [6, 7, 8, 9, 10, 11]])])  # 3 + 5 fed tokens: exactly the window
    assert calls == []
    score(model, [Example([1, 2, 3], [[4, 5], [6, 7, 8, 9, 10, 11, 12]])])
    assert calls == ["dense"] * 2


def test_sum_is_the_log_probability_of_a_completion(model_of: Any) -> None:
    model = model_of("llama")
    scores = score(model, [Example([1, 2], [[3, 4, 5], [6]])])
    logits = model(input_ids=torch.tensor([[1, 2, 3, 4, 5]])).logits[0].log_softmax(-1)
    expected = logits[1, 3] + logits[2, 4] + logits[3, 5]
    assert torch.allclose(scores.sum()[0], expected, atol=1e-12)
    assert scores.lengths.tolist() == [3.0, 1.0]


@pytest.mark.parametrize("arch", ["llama", "gemma2", "opt"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_all_statistics_and_temperature(
    arch: str, temperature: float, model_of: Any, row_logits: Any, grads_of: Any
) -> None:
    model, examples = model_of(arch), random_examples(5, completions=(2, 3))
    for example in examples:  # let some tokens be the most probable ones
        logits, _ = row_logits(model, [Example(example.prompt_ids, [[0]])])
        example.completions[0][0] = int(logits[0].argmax())
    logits, targets = row_logits(model, examples)
    log_p = (logits / temperature).log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(1)
    scores = score(model, examples, want=EVERYTHING, temperature=temperature, grad_entropy=True)
    assert torch.allclose(scores.logps, log_p.gather(1, targets[:, None])[:, 0], atol=1e-10)
    assert torch.allclose(scores.entropy, entropy, atol=1e-10)
    assert torch.equal(scores.top1, log_p.argmax(1) == targets) and scores.top1.any() and not scores.top1.all()
    assert torch.allclose(scores.mean_logit, logits.mean(1), atol=1e-10)
    assert torch.allclose(scores.log_square, (2 * log_p).logsumexp(1), atol=1e-10)
    assert not scores.mean_logit.requires_grad and not scores.log_square.requires_grad
    assert relative(grads_of(model, scores.entropy), grads_of(model, entropy)) < 1e-10


def test_entropy_carries_no_gradient_unless_asked(model_of: Any) -> None:
    scores = score(model_of("llama"), random_examples(1), want=EVERYTHING)
    assert scores.logps.requires_grad and not scores.entropy.requires_grad


def test_hidden_states_are_those_that_predict(model_of: Any, row_logits: Any) -> None:
    model, examples = model_of("llama"), trees()
    logits, _ = row_logits(model, examples)
    for layout in LAYOUTS:
        hidden = score(model, examples, want=Want.HIDDEN, layout=layout).hidden
        assert torch.allclose(model.lm_head(hidden), logits, atol=1e-10)


def test_prompt_tokens_on_request(model_of: Any) -> None:
    model = model_of("qwen3")
    example = Example([5, 6, 7, 8], [[1, 2], [3]], score_prompt=True)
    log_p = model(input_ids=torch.tensor([example.prompt_ids])).logits[0].log_softmax(-1)
    expected = torch.stack([log_p[0, 6], log_p[1, 7], log_p[2, 8]])
    for layout in LAYOUTS:
        scores = score(model, [Example([9], [[1]]), example], layout=layout)
        assert torch.allclose(scores.prompt_logps, expected, atol=1e-10)
        assert scores.prompt_segment.tolist() == [1, 1, 1]
        assert scores.logps.shape == (4,)


def test_nothing_to_score_is_no_accident(model_of: Any) -> None:
    model = model_of("llama")
    scores = score(model, [Example([], [[5]])])
    assert scores.logps.shape == (0,) and scores.sum().tolist() == [0.0]
    grads = torch.autograd.grad(scores.logps.sum(), list(model.parameters()), allow_unused=True)
    assert all(g is None or not g.any() for g in grads)


def test_empty_completions_and_foreign_ids_are_refused(model_of: Any) -> None:
    with pytest.raises(DataError, match="is empty"):
        score(model_of("llama"), [Example([1], [[2], []])])
    with pytest.raises(DataError, match="does not belong to this model"):
        score(model_of("llama"), [Example([1], [[VOCAB]])])


def test_wrong_temperature_and_missing_heads_are_refused(model_of: Any) -> None:
    with pytest.raises(ConfigError, match="temperature"):
        score(model_of("llama"), [Example([1], [[2]])], temperature=0.0)
    for want, name in ((Want.SCORE, "scalar head"), (Want.VALUE, "scalar head"), (Want.STEP, "two labels")):
        with pytest.raises(SetupError, match=name):
            score(model_of("llama"), [Example([1], [[2]])], want=want)
    with pytest.raises(ConfigError, match="no router"):
        score(model_of("llama"), [Example([1], [[2]])], aux_loss=True)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_gradient_checkpointing(arch: str, reentrant: bool, grads_of: Any) -> None:
    model, examples = tiny_model(arch), trees()
    disable_dropout(model)
    expected = grads_of(model, score(model, examples).logps)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
        scores = score(model, examples).logps
        weights = torch.linspace(-1.0, 1.3, scores.numel(), dtype=scores.dtype)
        (scores * weights).sum().backward()  # a reentrant checkpoint does not take part in autograd.grad
        grads = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])
    else:
        grads = grads_of(model, score(model, examples).logps)
    assert relative(grads, expected) < 1e-10
    assert model.config._attn_implementation == "sdpa"


def test_dropout_disabled_and_evaluating(row_logps: Any) -> None:
    model = tiny_model("gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    examples = random_examples(3, completions=(2, 2))
    expected = row_logps(model, examples)
    assert torch.allclose(score(model, examples).logps, expected, atol=1e-10)
    model.train()
    assert not torch.allclose(score(model, examples).logps, expected, atol=1e-3)
    disable_dropout(model)
    for layout in LAYOUTS:
        assert torch.allclose(score(model, examples, layout=layout).logps, expected, atol=1e-10)


def test_attention_dropout_while_training_is_dropout(model_of: Any) -> None:
    model = tiny_model("llama", attention_dropout=0.5)
    examples = random_examples(3, completions=(2, 2))
    exact = score(model, examples).logps
    model.train()
    draws = []
    for seed in range(2):
        torch.manual_seed(seed)
        draws.append(score(model, examples).logps)
    assert not torch.equal(draws[0], draws[1]) and not torch.allclose(draws[0], exact, atol=1e-3)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "lm_head"]])
def test_lora(targets: list[str], row_logps: Any, grads_of: Any) -> None:
    policy = apply_peft(tiny_model("llama"), {"r": 4, "target_modules": targets, "lora_dropout": 0.5})
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    examples = trees()
    expected = row_logps(policy, examples)
    expected_grads = grads_of(policy, expected)
    disable_dropout(policy).train()
    for head_bytes in (None, 1):
        for layout in LAYOUTS:
            logps = score(policy, examples, layout=layout, head_bytes=head_bytes).logps
            assert torch.allclose(logps, expected, atol=1e-6)  # LoRA's matrices are float32
            assert relative(grads_of(policy, logps), expected_grads) < 1e-5


def test_the_model_is_otherwise_as_it_was(tmp_path: Any) -> None:
    model, examples = tiny_model("llama"), random_examples(1, completions=(2, 3))
    ids = torch.tensor([[3, 4, 5], [0, 6, 7]])
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    kwargs = {"attention_mask": mask, "max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
    before = model.generate(ids, **kwargs)
    logits = model(input_ids=ids, attention_mask=mask).logits
    keys = list(model.state_dict())
    logps = score(model, examples).logps
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model.generate(ids, **kwargs), before)
    assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, logits)
    assert list(model.state_dict()) == keys
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(score(twin, examples).logps, logps)
        assert not any(p is q for p, q in zip(twin.parameters(), model.parameters(), strict=True))
    model.save_pretrained(tmp_path)
    assert "strop" not in (tmp_path / "config.json").read_text()
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.float64)
    assert torch.allclose(score(loaded, examples).logps, logps, atol=1e-4)


def test_a_failing_forward_leaves_the_attention_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")  # one of its own: its norm loses what keeps it in float64
    score(model, [Example([1], [[2]])], layout="tree")  # the layout is known before anything fails
    monkeypatch.setattr(type(model.model.norm), "forward", lambda *a: 1 / 0)
    model.model.norm.__dict__.pop("forward", None)
    with pytest.raises(ZeroDivisionError):
        score(model, [Example([1], [[2]])], layout="tree")
    assert model.config._attn_implementation == "sdpa"


def test_install_is_idempotent_and_shared_by_the_class() -> None:
    model = tiny_model("llama")
    install(model)
    once = type(model).forward
    install(model)
    install(tiny_model("llama"))
    assert type(model).forward is once
    assert "forward" not in vars(model)


def test_a_forward_set_on_the_object_is_gone_around() -> None:
    model = tiny_model("qwen2")
    plain = model.forward
    while hasattr(plain, "__wrapped__"):  # as a library does that captured the forward before strop was there
        plain = plain.__wrapped__
    model.forward = lambda *args, **kwargs: plain(model, *args, **kwargs)
    examples = [Example([1, 2], [[3, 4]])]
    logps = score(model, examples).logps
    assert torch.allclose(logps, score(tiny_model("qwen2"), examples).logps)
    assert model(input_ids=torch.tensor([[1, 2]])).logits.shape == (1, 2, VOCAB)


def test_a_wrapper_that_swallows_scoring_is_named(model_of: Any) -> None:
    class Wrapper(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, **kwargs: Any) -> Any:
            return self.module(input_ids=torch.tensor([[1]]))

    Wrapper.__name__ = "DataParallel"
    batch = build_batch([Example([1], [[2]])])
    with pytest.raises(SetupError, match="before wrapping"):
        score_batch(Wrapper(model_of("llama")), batch)


def test_bfloat16_is_close(model_of: Any) -> None:
    exact, half = model_of("llama"), model_of("llama", dtype=torch.bfloat16)
    examples = random_examples(1, completions=(2, 3))
    a, b = score(exact, examples), score(half, examples)
    assert b.logps.dtype == torch.float32
    assert (a.logps - b.logps).abs().mean() < 0.15
    packed = score(half, examples, layout="packed")
    assert (packed.logps - b.logps).abs().mean() < 0.15


def test_autocast_reaches_attention_and_head(model_of: Any) -> None:
    model, examples = model_of("llama", dtype=torch.float32), random_examples(1, completions=(2, 3))
    exact = score(model, examples).logps
    with torch.autocast("cpu", torch.bfloat16):
        logps = score(model, examples).logps
    assert logps.dtype == torch.float32
    difference = (logps - exact).abs().mean()
    assert 1e-4 < difference < 0.15
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(logps.sum(), list(model.parameters())))


class _LargestTensor(TorchDispatchMode):
    """Numbers of elements of the tensors that operators make."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(item, torch.Tensor):
                self.shapes.add(tuple(item.shape))
        return out


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("arch", ["llama", "gemma2"])
def test_no_tensor_of_prompt_times_vocabulary_and_none_beyond_the_budget(arch: str, lora: bool) -> None:
    vocab, hidden = 1024, 32
    model = tiny_model(arch, dtype=torch.float32, vocab_size=vocab)
    if lora:
        model = apply_peft(model, {"r": 2, "target_modules": ["q_proj", "lm_head"]})
    examples = random_examples(0, vocab, trees=2, completions=(2, 2), prompt=(60, 60), length=(20, 20))
    layout_of(model)
    budget = 12 * vocab * 4 * (6 if arch == "gemma2" else 3)  # twelve rows of logits and their gradient's terms
    for head_bytes, bound in ((budget, budget // 4), (None, 80 * vocab)):
        with _LargestTensor() as seen:
            scores = score(model, examples, want=EVERYTHING, head_bytes=head_bytes)
            assert scores.logps.shape == (80,)
            scores.logps.sum().backward()
        wide = {shape for shape in seen.shapes if vocab in shape}
        weights = {shape for shape in wide if hidden in shape or 2 in shape}  # the matrix, its gradient, LoRA's B
        logits = {shape for shape in wide - weights}
        assert logits
        largest = max(torch.Size(shape).numel() for shape in logits)
        assert largest <= bound, (largest, bound, sorted(logits))


def test_scores_under_distributed_data_parallel(tmp_path: Any, grads_of: Any) -> None:
    import torch.distributed as dist

    model, examples = tiny_model("llama"), random_examples(1, completions=(2, 3))
    expected = score(model, examples)
    expected_grads = grads_of(model, expected.logps)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        reduced = []
        wrapped.register_comm_hook(None, lambda state, bucket: reduced.append(1) or _done(bucket))
        scores = score(wrapped, examples)
        assert torch.equal(scores.logps, expected.logps)
        weights = torch.linspace(-1.0, 1.3, scores.logps.numel(), dtype=torch.float64)
        (scores.logps * weights).sum().backward()
        assert reduced, "the gradients went around DDP"
        grads = torch.cat([p.grad.flatten() for p in model.parameters()])
        assert relative(grads, expected_grads) < 1e-10
    finally:
        dist.destroy_process_group()


def _done(bucket: Any) -> Any:
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def test_scores_under_fully_sharded_data_parallel(tmp_path: Any) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, examples = tiny_model("llama", dtype=torch.float32), random_examples(1, completions=(2, 3))
    expected = score(model, examples).logps
    parameters = list(model.parameters())
    expected_grads = torch.autograd.grad(expected.sum(), parameters)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for part in (*model.model.layers, model.lm_head, model):
            fully_shard(part, mesh=mesh)
        assert layout_of(model) == layout_of(tiny_model("llama", dtype=torch.float32))
        for head_bytes in (None, 1000):
            model.zero_grad()
            logps = score(model, examples, head_bytes=head_bytes).logps
            assert torch.allclose(logps, expected, atol=1e-5)
            logps.sum().backward()
            for parameter, grad in zip(model.parameters(), expected_grads, strict=True):
                assert torch.allclose(parameter.grad.full_tensor(), grad, atol=1e-4)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("own_head", [False, True])
def test_mixed_precision_put_around_the_forward_surrounds_scoring(own_head: bool) -> None:
    """As accelerate does it: one autocast object on the instance's forward, which must not be entered twice."""
    model, examples = tiny_model("llama", dtype=torch.float32), random_examples(1, completions=(2, 3))
    exact = score(model, examples).logps
    model = tiny_model("llama", dtype=torch.float32)
    install(model)
    model._original_forward = model.forward
    model.forward = types.MethodType(torch.autocast("cpu", torch.bfloat16)(model.forward.__func__), model)
    assert not layout_of(model).own_head
    batch = build_batch(examples)
    logps = score_batch(model, batch, own_head=own_head).logps
    assert 1e-4 < (logps - exact).abs().mean() < 0.15
    assert not torch.is_autocast_enabled("cpu")


def test_offloaded_weights_come_when_called() -> None:
    from accelerate import cpu_offload

    model, examples = tiny_model("qwen2", dtype=torch.float32), random_examples(1, completions=(2, 3))
    expected = score(model, examples).logps
    model = tiny_model("qwen2", dtype=torch.float32)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert next(model.parameters()).device.type == "meta"
    with torch.no_grad():
        assert torch.allclose(score(model, examples).logps, expected, atol=1e-6)
