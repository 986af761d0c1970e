"""A trainer with the vllm engine, on a stub that truly loads the weights it is sent and samples from them."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.support.templates import KINDS, tokenizer_with
from torch import nn
from transformers import AutoModelForCausalLM

from strop.errors import SetupError
from strop.rollout import SamplingParams
from strop.rollout.native import NativeGenerator
from strop.testing.cases import make_trainer, rows_for
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import VOCABULARY, toy_tokenizer


def policy_of(seed: int = 0) -> nn.Module:
    return tiny_model("llama", dtype=torch.float32, seed=seed, vocab_size=VOCABULARY)


@pytest.fixture
def serve(stub: Any) -> Callable[[nn.Module], Any]:
    """Let the stub serve a model, which the weights it is sent replace."""

    def run(model: nn.Module, tokenizer: Any = None) -> Any:
        stub.model, send, stub.model_card = model, stub.answer, {"data": [{"id": "base-model", "max_model_len": 64}]}
        one_at_a_time = threading.Lock()  # a rollout borrows the model

        def answer(handler: Any, body: dict[str, Any]) -> None:
            if handler.path == "/collective_rpc":
                stub.model = AutoModelForCausalLM.from_pretrained(body["kwargs"]["weights_path"])
            elif handler.path == "/v1/load_lora_adapter":
                base = stub.model.unload() if isinstance(stub.model, PeftModel) else stub.model
                stub.model = PeftModel.from_pretrained(base, body["lora_path"])
            send(handler, body)

        def sample(handler: Any, body: dict[str, Any]) -> bool:
            sampling = SamplingParams(
                body["max_tokens"], temperature=body["temperature"], stop_token_ids=body["stop_token_ids"],
                stop_strings=tuple(body["stop"]), seed=body["seed"],
            )  # fmt: skip
            with one_at_a_time:
                drawn = NativeGenerator(stub.model, tokenizer).generate([body["prompt"]], body["n"], sampling)
            parts = zip(drawn.completions[0], drawn.sampler_logps[0], drawn.finish_reasons[0], strict=True)
            choices = [
                {"index": i, "token_ids": ids, "logprobs": {"token_logprobs": logps}, "finish_reason": finish}
                for i, (ids, logps, finish) in enumerate(parts)
            ]
            stub.send(handler, {"choices": choices})
            return True

        stub.answer, stub.behaviour = answer, sample
        return stub

    return run


def grpo(tmp_path: Path, model: nn.Module, url: str, **settings: Any) -> Any:
    return make_trainer(
        "grpo", tmp_path, model=model, tokenizer=toy_tokenizer("plain"), use_vllm=True, vllm_mode="server",
        vllm_server_base_url=url, max_steps=2, num_generations=4, per_device_train_batch_size=8, learning_rate=0.02,
        **settings,
    )  # fmt: skip


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_every_step_samples_from_the_newest_weights(serve: Callable, tmp_path: Path, lora: bool) -> None:
    model = policy_of()
    stub = serve(policy_of())
    if lora:
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    trainer = grpo(tmp_path, model, stub.url, eval_rows=rows_for("grpo", 4), temperature=0.8)
    start = [p.detach().clone() for p in model.parameters()]
    trainer.train()
    assert any(not torch.equal(a, b) for a, b in zip(start, model.parameters(), strict=True))
    logged = [line for line in trainer.state.log_history if "loss" in line]
    assert len(logged) == 2
    for line in logged:
        assert line["sampling/sampling_logp_difference/max"] < 1e-4
        assert abs(line["sampling/importance_sampling_ratio/mean"] - 1) < 1e-4
    path = "/v1/load_lora_adapter" if lora else "/collective_rpc"
    assert len(stub.sent(path)) == 2
    trainer.evaluate()
    trainer.evaluate()
    assert len(stub.sent(path)) == 3, "weights that did not change need not travel"


class Twice:
    """Answers the first turn, and ends after the second."""

    def reset(self, **row: Any) -> None:
        self.reward = 0.0

    def step(self, text: str) -> tuple[str, bool]:
        self.reward += 1
        return "on", self.reward == 2


@pytest.mark.parametrize(("room", "turns"), [(300, 2), (24, 1)])
def test_turns_go_on_from_what_was_sampled(
    room: int, turns: int, serve: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each turn is asked for behind the very ids of the one before; where vLLM was started for less, it is the end."""
    monkeypatch.setenv("VLLM_MAX_STOP_STRINGS", "22")
    tokenizer, _ = tokenizer_with(KINDS["gathered"])
    model = lambda: tiny_model("llama", dtype=torch.float32, vocab_size=len(tokenizer))  # noqa: E731
    stub = serve(model(), tokenizer)
    stub.model_card = {"data": [{"id": "base-model", "max_model_len": room}]}
    trainer = make_trainer(
        "grpo", tmp_path, rows=[{"prompt": [{"role": "user", "content": "go"}]}] * 2, model=model(),
        tokenizer=tokenizer, use_vllm=True, vllm_mode="server", vllm_server_base_url=stub.url, num_generations=2,
        stop=[chr(c) for c in range(ord("a"), ord("w"))], max_completion_length=200, max_length=None,
        trainer={"reward_funcs": None, "environment_factory": Twice},
    )  # fmt: skip
    (group,) = trainer.rollout([trainer.train_dataset[0]], 2, training=True)
    asked = [body["prompt"] for body in stub.sent("/v1/completions")]
    prompt, contexts = group.example.prompt_ids, []
    for ids, mask in zip(group.completions, group.loss_mask, strict=True):
        begins = [i for i, on in enumerate(mask) if on and (i == 0 or not mask[i - 1])]
        assert len(begins) == turns
        contexts += [prompt + ids[:begin] for begin in begins]
    assert sorted(asked) == sorted(contexts) and len(stub.sent("/collective_rpc")) == 1
    assert group.finish_reasons == ["stop" if turns == 2 else "length"] * 2
    group.advantages = torch.ones(2)
    trees = trainer.trees(group)
    scores = trainer.score(trainer.model, trainer.build(trees), log=False)
    wrote = [
        logp for logps, mask in zip(group.sampler_logps, group.loss_mask, strict=True)
        for logp, on in zip(logps, mask, strict=True) if on
    ]  # fmt: skip
    assert torch.allclose(scores.logps.detach(), torch.tensor(wrote), atol=1e-4)


def test_stale_weights_are_seen_in_the_metrics(
    serve: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = serve(policy_of())
    trainer = grpo(tmp_path, policy_of(), stub.url)
    monkeypatch.setattr(trainer.generator, "sync", lambda model=None: None)
    trainer.generator._sent = ()
    trainer.train()
    gaps = [line["sampling/sampling_logp_difference/mean"] for line in trainer.state.log_history if "loss" in line]
    assert gaps[0] < 1e-4 < 1e-2 < gaps[1]


class FakeLLM:
    """Takes down what a colocated vLLM is started with, and does not start."""

    given: dict[str, Any]

    def __init__(self, **given: Any) -> None:
        FakeLLM.given = given
        FakeLLM.files = sorted(path.name for path in Path(given["model"]).iterdir())
        raise RuntimeError("no memory left")


def test_a_colocated_vllm_is_started_with_the_trainers_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", types.SimpleNamespace(LLM=FakeLLM))  # type: ignore[arg-type]
    settings = dict(vllm_max_model_length=48, vllm_gpu_memory_utilization=0.2, vllm_model_impl="vllm", max_slots=3)
    trainer = make_trainer(
        "grpo", tmp_path, model=policy_of(), tokenizer=toy_tokenizer("plain"), use_vllm=True, **settings
    )
    with pytest.raises(SetupError, match=r"could not start.*no memory left"):
        _ = trainer.generator
    wanted = {"max_model_len": 48, "gpu_memory_utilization": 0.2, "model_impl": "vllm", "max_num_seqs": 3}
    wanted |= {"dtype": torch.float32, "logprobs_mode": "processed_logprobs"}
    assert {name: FakeLLM.given[name] for name in wanted} == wanted
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(FakeLLM.files)


def test_a_rank_without_prompts_meets_the_others_too(
    serve: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = serve(policy_of())
    trainer, met = grpo(tmp_path, policy_of(), stub.url), []
    monkeypatch.setattr(trainer.generator, "sync", met.append)
    assert trainer.rollout([], 4, training=True) == [] and met == [trainer.policy]
