"""A real vLLM on this machine: both modes, full weights and LoRA, from the first rollout to a server that is killed.

Skipped where vLLM is not installed; docs/vllm.md says how to install it, also without a GPU. Starting vLLM takes half
a minute each time, so that all tests of a kind share one.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.support.conversations import sampler_logps_of
from torch import nn
from transformers import AutoModelForCausalLM, TrainerCallback

from strop.agents import AgentProgram
from strop.errors import RolloutError, SetupError
from strop.http_client import JsonClient
from strop.rollout import SamplingParams, warp_logps
from strop.rollout.native import NativeGenerator
from strop.rollout.vllm_engine import VllmGenerator
from strop.rollout.vllm_server import VllmServer
from strop.testing.cases import make_trainer
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (docs/vllm.md says how)"
)
SHAPE = dict(
    hidden_size=128,
    intermediate_size=128,
    num_attention_heads=2,
    num_key_value_heads=2,
    vocab_size=288,
    tie_word_embeddings=True,
)
LORA = dict(r=8, target_modules=["q_proj", "down_proj"])
PROMPTS = [[5, 6, 7], [40, 41, 42, 43, 44, 45, 46, 47, 48, 49], [60]]
GREEDY = SamplingParams(max_new_tokens=12, temperature=0, stop_token_ids=())
START_S = 240.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer, as vLLM loads it."""
    path = tmp_path_factory.mktemp("base")
    tiny_model("llama", dtype=torch.float32, **SHAPE).save_pretrained(path)
    toy_tokenizer("chatml").save_pretrained(path)
    return path


def start_server(folder: Path, *flags: str) -> SimpleNamespace:
    """`strop vllm-serve` on a free port, in a process group of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "strop", "vllm-serve", "--model", str(folder), "--port", str(port)]
    command += ["--dtype", "float32", "--max-model-len", "256", "--enforce-eager", *flags]
    log = folder.parent / f"server-{port}.log"
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_SERVER_DEV_MODE": "0", **os.environ}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        VllmServer(url, None, 30.0, wait_s=START_S)
    except SetupError as error:
        stop(process)
        raise AssertionError(f"{error}\n{log.read_text()[-4000:]}") from error
    return SimpleNamespace(url=url, process=process, log=log)


def stop(process: subprocess.Popen) -> None:
    for sign, patience_s in ((signal.SIGTERM, 20), (signal.SIGKILL, 20)):
        try:
            os.killpg(process.pid, sign)
            process.wait(patience_s)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


@pytest.fixture(scope="module")
def full_server(folder: Path) -> Iterator[SimpleNamespace]:
    server = start_server(folder)
    yield server
    stop(server.process)


@pytest.fixture(scope="module")
def lora_server(folder: Path) -> Iterator[SimpleNamespace]:
    server = start_server(folder, "--lora_rank", "8")
    yield server
    stop(server.process)


def other_weights(seed: int = 1) -> nn.Module:
    return tiny_model("llama", dtype=torch.float32, seed=seed, **SHAPE)


def lora_policy(folder: Path) -> Any:
    return get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(**LORA)).eval()


def engine_for(model: nn.Module, server: SimpleNamespace, **settings: Any) -> VllmGenerator:
    return VllmGenerator(model, toy_tokenizer("chatml"), base_url=server.url, timeout_s=60.0, **settings)


class Watch(TrainerCallback):
    """After every optimizer step: does the engine have the policy's weights?"""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.greedy: list[Any] = []
        self.gaps: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        policy, engine = self.trainer.policy, self.trainer.generator
        engine.sync(policy)
        expected = NativeGenerator(policy).generate(PROMPTS, 1, GREEDY).completions
        assert engine.generate(PROMPTS, 1, GREEDY).completions == expected
        self.greedy.append(expected)
        sampled = engine.generate(PROMPTS, 2, SamplingParams(max_new_tokens=12, seed=state.global_step))
        self.gaps.append(largest_gap_to(policy, sampled, SamplingParams(max_new_tokens=12)))


def largest_gap_to(policy: nn.Module, rollout: Any, sampling: SamplingParams) -> float:
    """Between the engine's log-probs and those of a forward pass of the policy, warped like the sampler's."""
    gap = 0.0
    for prompt, completions, reported in zip(rollout.prompts, rollout.completions, rollout.sampler_logps, strict=True):
        for ids, logps in zip(completions, reported, strict=True):
            with torch.no_grad():
                logits = policy(input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[0, len(prompt) - 1 : -1]
            history = [(prompt + ids)[: len(prompt) + t] for t in range(len(ids))]
            own = warp_logps(logits, sampling, history).gather(-1, torch.tensor(ids)[:, None])[:, 0]
            gap = max(gap, float((own - torch.tensor(logps)).abs().max()))
    return gap


def train(tmp_path: Path, model: nn.Module, **settings: Any) -> tuple[Any, Watch]:
    watch = Watch()
    trainer = make_trainer(
        "grpo", tmp_path, model=model, tokenizer=toy_tokenizer("chatml"), trainer={"callbacks": [watch]},
        use_vllm=True, max_steps=3, num_generations=4, per_device_train_batch_size=8, learning_rate=0.02, beta=0.0,
        max_completion_length=12, **settings,
    )  # fmt: skip
    watch.trainer, made = trainer, trainer.args.vllm_settings()
    if "llm_args" in made:  # compiling would take longer than all the rest
        trainer.args.vllm_settings = lambda: {**made, "llm_args": {**made["llm_args"], "enforce_eager": True}}
    trainer.train()
    return trainer, watch


def assert_on_policy(trainer: Any, watch: Watch) -> None:
    assert len(watch.gaps) == 3 and max(watch.gaps) < 1e-3
    assert len({str(ids) for ids in watch.greedy}) > 1, "training should change what is written"
    logged = [line for line in trainer.state.log_history if "loss" in line]
    assert len(logged) == 3
    for line in logged:
        assert line["sampling/sampling_logp_difference/mean"] < 1e-3
        assert 0.99 < line["sampling/importance_sampling_ratio/min"] <= 1.0 + 1e-3
        assert 1.0 - 1e-3 <= line["sampling/importance_sampling_ratio/max"] < 1.01
        assert line["grad_norm"] > 0


def test_grpo_on_a_server_with_full_weights(full_server: SimpleNamespace, tmp_path: Path) -> None:
    trainer, watch = train(tmp_path, other_weights(), vllm_mode="server", vllm_server_base_url=full_server.url)
    assert_on_policy(trainer, watch)
    trainer.generator.close()


def test_grpo_on_a_server_with_lora(lora_server: SimpleNamespace, folder: Path, tmp_path: Path) -> None:
    policy = lora_policy(folder)
    base = {name: value.clone() for name, value in policy.named_parameters() if "lora_" not in name}
    sync_dir = tmp_path / "sync"
    trainer, watch = train(
        tmp_path, policy, vllm_mode="server", vllm_server_base_url=lora_server.url, vllm_sync_dir=str(sync_dir)
    )
    assert_on_policy(trainer, watch)
    assert all(torch.equal(value, base[name]) for name, value in policy.named_parameters() if name in base)
    (sent,) = sync_dir.iterdir()
    assert {path.suffix for path in sent.iterdir()} <= {".safetensors", ".json", ".md"}
    assert (sent / "adapter_model.safetensors").stat().st_size < 100_000 < (folder / "model.safetensors").stat().st_size
    listed = JsonClient(lora_server.url).get("/v1/models", 10.0)["data"]
    assert sum("strop-" in entry["id"] for entry in listed) == 1, "adapters of earlier steps should be gone"
    trainer.generator.close()
    assert len(JsonClient(lora_server.url).get("/v1/models", 10.0)["data"]) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 20},
        {"top_p": 0.8},
        {"top_k": 50, "top_p": 0.9, "temperature": 0.8},
        {"min_p": 0.05},
        {"repetition_penalty": 1.3},
    ],
    ids=str,
)
def test_reported_logps_are_those_of_the_distribution_sampled_from(
    full_server: SimpleNamespace, settings: dict[str, Any]
) -> None:
    policy = other_weights()
    sampling = SamplingParams(max_new_tokens=24, stop_token_ids=(), seed=5, **settings)
    rollout = engine_for(policy, full_server).generate(PROMPTS, 3, sampling)
    assert largest_gap_to(policy, rollout, sampling) < 1e-3


def test_seeds_samples_stops_and_reasons(full_server: SimpleNamespace) -> None:
    policy = other_weights()
    engine = engine_for(policy, full_server)

    def draw(seed: int, **settings: Any) -> Any:
        return engine.generate(PROMPTS, 4, SamplingParams(max_new_tokens=24, seed=seed, **settings))

    free = draw(1, stop_token_ids=())
    assert free.completions == draw(1, stop_token_ids=()).completions != draw(2, stop_token_ids=()).completions
    assert all(len({str(ids) for ids in samples}) == 4 for samples in free.completions)
    assert {len(ids) for samples in free.completions for ids in samples} == {24}
    assert {reason for reasons in free.finish_reasons for reason in reasons} == {"length"}
    stops = tuple({samples[0][5] for samples in free.completions})
    stopped = draw(1, stop_token_ids=stops)
    reasons = list(chain(*stopped.finish_reasons))
    for whole, ids, reason in zip(chain(*free.completions), chain(*stopped.completions), reasons, strict=True):
        first = next((i for i, token in enumerate(whole) if token in stops), None)
        assert reason == ("length" if first is None else "stop")
        assert ids == (whole if first is None else whole[: first + 1])
    assert "stop" in reasons
    tokenizer, letters = toy_tokenizer("chatml"), ("e", "t", "o")
    stopped = draw(1, stop_token_ids=(), stop_strings=letters)
    reasons = list(chain(*stopped.finish_reasons))
    for ids, reason in zip(chain(*stopped.completions), reasons, strict=True):
        before, after = tokenizer.decode(ids[:-1]), tokenizer.decode(ids)
        assert not any(letter in before for letter in letters)
        assert (reason == "stop") == any(letter in after for letter in letters)
    assert "stop" in reasons


def test_another_model_is_named(full_server: SimpleNamespace, lora_server: SimpleNamespace, folder: Path) -> None:
    stranger = get_peft_model(other_weights(7), LoraConfig(**LORA)).eval()
    with pytest.raises(SetupError, match="another model than the policy") as caught:
        engine_for(stranger, lora_server).generate(PROMPTS, 1, GREEDY)
    assert "strop-" in str(caught.value) and str(folder) not in str(caught.value)
    larger = tiny_model("llama", dtype=torch.float32, **{**SHAPE, "vocab_size": 320})
    with pytest.raises(SetupError, match=r"last id 319.*out of vocabulary"):
        engine_for(larger, full_server)


def test_a_server_for_the_other_kind_of_policy_says_how_to_start_it(
    full_server: SimpleNamespace, lora_server: SimpleNamespace, folder: Path
) -> None:
    with pytest.raises(RolloutError, match="vllm-serve without --lora_rank"):
        engine_for(other_weights(), lora_server).sync()
    with pytest.raises(RolloutError, match="vllm-serve --lora_rank R"):
        engine_for(lora_policy(folder), full_server).sync()


def test_an_adapter_of_higher_rank_than_the_servers_is_named(lora_server: SimpleNamespace, folder: Path) -> None:
    policy = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(**{**LORA, "r": 16}))
    with pytest.raises(RolloutError, match="rank"):
        engine_for(policy, lora_server).sync()


def test_a_server_that_stands_still_or_is_killed_is_left_in_time(lora_server: SimpleNamespace, folder: Path) -> None:
    policy = lora_policy(folder)
    engine = engine_for(policy, lora_server)
    engine.sync()
    long = SamplingParams(max_new_tokens=200, stop_token_ids=())
    os.killpg(lora_server.process.pid, signal.SIGSTOP)
    engine.backend.timeout_s = 2.0  # type: ignore[union-attr]
    start = time.monotonic()
    with pytest.raises(RolloutError, match="within 2 s"):
        engine.generate(PROMPTS, 4, long)
    with torch.no_grad():
        next(p for p in policy.parameters() if p.requires_grad).add_(1.0)
    with pytest.raises(RolloutError, match="within 2 s"):
        engine.sync()
    os.killpg(lora_server.process.pid, signal.SIGCONT)
    engine.backend.timeout_s = 60.0  # type: ignore[union-attr]
    engine.sync()
    expected = NativeGenerator(policy).generate(PROMPTS, 1, GREEDY).completions
    assert engine.generate(PROMPTS, 1, GREEDY).completions == expected
    threading.Timer(0.3, os.killpg, (lora_server.process.pid, signal.SIGKILL)).start()
    with pytest.raises(RolloutError, match="died"):
        for _ in range(1000):
            engine.generate(PROMPTS, 8, long)
    assert time.monotonic() - start < 60
    with pytest.raises(RolloutError, match="not running"):
        engine.generate(PROMPTS, 1, GREEDY)
    engine.close()


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_grpo_with_vllm_in_this_process(
    lora: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"))
    policy = lora_policy(folder) if lora else other_weights()
    base = {name: value.clone() for name, value in policy.named_parameters() if lora and "lora_" not in name}
    trainer, watch = train(tmp_path, policy, vllm_max_model_length=256)
    assert_on_policy(trainer, watch)
    assert trainer.generator.backend.serves.startswith("strop-") == lora
    assert all(torch.equal(value, base[name]) for name, value in policy.named_parameters() if name in base)
    with pytest.raises(RolloutError, match="in this process failed in generate"):
        trainer.generator.backend.complete([{"prompt": [10_000], "n": 1, "max_tokens": 4}])
    trainer.generator.close()


class Questions:
    """Two turns of the model, answered once; long ones are better."""

    def reset(self, **row: Any) -> None:
        self.reward, self.turns = 0.0, 0

    def step(self, text: str) -> tuple[str, bool]:
        self.reward, self.turns = self.reward + len(text), self.turns + 1
        return "and then?", self.turns == 2


def test_each_turn_reads_what_is_cached_of_the_turns_before(
    full_server: SimpleNamespace, folder: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(
        "grpo", tmp_path, rows=[{"prompt": [{"role": "user", "content": "go on and on " * 9}]}] * 2,
        model=AutoModelForCausalLM.from_pretrained(folder), tokenizer=toy_tokenizer("chatml"), use_vllm=True,
        vllm_mode="server", vllm_server_base_url=full_server.url, num_generations=2, max_length=None,
        stop_token_ids=list(range(100, 150)), max_completion_length=90, max_steps=1, logging_steps=1,
        trainer={"reward_funcs": None, "environment_factory": Questions},
    )  # fmt: skip
    before = cached_tokens(full_server.url)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["turns/mean_count"] == 2.0
    assert log["sampling/sampling_logp_difference/max"] < 1e-3
    assert cached_tokens(full_server.url) > before


def asking(endpoint: Any, row: dict[str, Any]) -> dict[str, Any]:
    """An agent: two turns, the second of which may not say "e", and a prompt that the server has no room for."""
    head = {"Authorization": f"Bearer {endpoint.api_key}"}
    with httpx2.Client(trust_env=False, timeout=60, headers=head) as client:

        def ask(messages: list[Any], **settings: Any) -> Any:
            return client.post(f"{endpoint.base_url}/chat/completions", json={"messages": messages, **settings}).json()

        first = ask(row["prompt"], logprobs=True, max_tokens=20)["choices"][0]
        messages = [*row["prompt"], first["message"], {"role": "user", "content": "and?"}]
        second = ask(messages, stop=["e", "o"], max_tokens=40)["choices"][0]
        many = ask(messages, stop=list("abcde"))["error"]["message"]
        return {
            "logps": [token["logprob"] for token in first["logprobs"]["content"]],
            "said": second["message"]["content"], "end": second["finish_reason"], "many": many,
        }  # fmt: skip


def test_an_agent_program_over_a_server(full_server: SimpleNamespace, folder: Path, tmp_path: Path) -> None:
    """What it is answered and what is learned are what the server sampled: ids, log-probs, stop strings."""
    rows = [{"prompt": [{"role": "user", "content": f"go on {i}"}]} for i in range(2)]
    trainer = make_trainer(
        "grpo", tmp_path, rows=rows, model=AutoModelForCausalLM.from_pretrained(folder),
        tokenizer=toy_tokenizer("chatml"), use_vllm=True, vllm_mode="server", vllm_server_base_url=full_server.url,
        num_generations=4, per_device_train_batch_size=8, max_length=None, max_completion_length=120, max_steps=2,
        logging_steps=1, learning_rate=0.02, beta=0.0,
        trainer={"reward_funcs": lambda said, **columns: [float(len(text)) for text in said],
                 "rollout_func": AgentProgram(asking, columns=["said"])},
    )  # fmt: skip
    groups = trainer.rollout([trainer.train_dataset[i] for i in range(2)], 4, training=True)
    trainer.score_groups(groups, "train")
    ends = []
    for group in groups:
        group.advantages = torch.ones(4)
        trees = trainer.trees(group)
        own = trainer.score(trainer.model, trainer.build(trees), log=False).logps.detach()
        assert float((own - torch.tensor(sampler_logps_of(trees))).abs().max()) < 1e-3
        for index, said in enumerate(group.extra["said"]):
            turn = group.replies[index][-1]["content"]
            ends.append(group.extra["end"][index])
            stopped = next((at for at, letter in enumerate(turn) if letter in "eo"), len(turn))
            assert said == turn[:stopped] and (ends[-1] == "stop" or stopped == len(turn))
            assert group.sampler_logps[index][: len(group.extra["logps"][index])] == group.extra["logps"][index]
            assert "takes 4 stop strings" in group.extra["many"][index]
    assert "stop" in ends and len({str(ids) for group in groups for ids in group.completions}) == 8
    trainer.train()
    for line in [line for line in trainer.state.log_history if "loss" in line]:
        assert line["turns/mean_count"] == 2.0 and line["turns/failed"] == line["turns/rewritten"] == 0.0
        assert line["sampling/sampling_logp_difference/max"] < 1e-3 and line["grad_norm"] > 0
    trainer.generator.close()


def test_a_conversation_of_an_agent_ends_where_the_server_has_no_room(
    full_server: SimpleNamespace, folder: Path, tmp_path: Path
) -> None:
    """It was started for 256 tokens, the model reads more; the run goes on."""
    codes = []

    def agent(endpoint: Any, row: dict[str, Any]) -> None:
        head, url = {"Authorization": f"Bearer {endpoint.api_key}"}, f"{endpoint.base_url}/chat/completions"
        for words in (10, 300):
            asked = {"messages": [{"role": "user", "content": "go " * words}], "max_tokens": 4}
            answer = httpx2.post(url, json=asked, headers=head, timeout=60, trust_env=False)
            codes.append(answer.json().get("error", {}).get("code"))

    trainer = make_trainer(
        "grpo", tmp_path, rows=[{"prompt": [{"role": "user", "content": "go"}]}] * 2,
        model=AutoModelForCausalLM.from_pretrained(folder), tokenizer=toy_tokenizer("chatml"), use_vllm=True,
        vllm_mode="server", vllm_server_base_url=full_server.url, num_generations=2, max_length=None,
        max_completion_length=64, trainer={"reward_funcs": lambda completions, **columns: [0.0, 1.0],
                                           "rollout_func": AgentProgram(agent)},
    )  # fmt: skip
    (group,) = trainer.rollout([trainer.train_dataset[0]], 2, training=True)
    assert group.finish_reasons == ["length", "length"]
    assert codes.count(None) == 2 and codes.count("context_length_exceeded") == 2
    trainer.generator.close()


def cached_tokens(url: str) -> float:
    """Tokens of prompts that the server found in its cache."""
    lines = urllib.request.urlopen(f"{url}/metrics", timeout=30).read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:prefix_cache_hits_total"))
