from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn

from strop.errors import ConfigError, DataError, RolloutError, SetupError
from strop.rollout import Mixture, SamplingParams, make_generator
from strop.rollout.vllm_engine import VllmGenerator
from strop.testing.tiny import tiny_model

SAMPLING = SamplingParams(max_new_tokens=3, stop_token_ids=(2,), seed=1)


def lora_policy(adapter: str = "default") -> nn.Module:
    return get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"]), adapter_name=adapter)


def change(policy: nn.Module) -> None:
    """As an optimizer step would, by very little."""
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.flatten()[0] += 1e-6


@pytest.fixture
def engine(stub: Any, llama: nn.Module) -> VllmGenerator:
    return VllmGenerator(llama, base_url=stub.url, timeout_s=5.0)


def test_completions_come_back_by_prompt_and_sample(engine: VllmGenerator) -> None:
    rollout = engine.generate([[5, 6], [7]], 2, SAMPLING)
    assert rollout.prompts == [[5, 6], [7]]
    assert rollout.completions == [[[5, 2], [5, 21, 30]], [[7, 2], [7, 21, 30]]]
    assert rollout.sampler_logps == [[[-0.5, -0.6], [-0.5, -0.6, -0.7]]] * 2
    assert rollout.finish_reasons == [["stop", "length"]] * 2
    assert engine.generate([], 2, SAMPLING).completions == []


def test_every_sampling_setting_is_sent(stub: Any, engine: VllmGenerator) -> None:
    full = SamplingParams(
        max_new_tokens=7,
        temperature=0.8,
        top_k=11,
        top_p=0.9,
        repetition_penalty=1.1,
        stop_token_ids=(2, 4),
        stop_strings=("END",),
        seed=3,
    )
    engine.generate([[5] * 10, [6] * 38], 2, full)
    bodies = {body["prompt"][0]: body for body in stub.sent("/v1/completions")}
    body = bodies[5]
    sent = {key: body[key] for key in ("n", "max_tokens", "temperature", "top_k", "top_p", "min_p")}
    assert sent == {"n": 2, "max_tokens": 7, "temperature": 0.8, "top_k": 11, "top_p": 0.9, "min_p": 0.0}
    assert body["repetition_penalty"] == 1.1 and body["stop_token_ids"] == [2, 4] and body["stop"] == ["END"]
    assert body["ignore_eos"] is True and body["include_stop_str_in_output"] is True
    assert bodies[6]["max_tokens"] == 2  # 40 positions, 38 taken
    assert body["seed"] != bodies[6]["seed"] and 0 <= body["seed"] < 2**31
    off = SamplingParams(max_new_tokens=3, seed=3)
    engine.generate([[5]], 1, off)
    body = stub.sent("/v1/completions")[-1]
    assert (body["top_k"], body["top_p"], body["min_p"], body["repetition_penalty"]) == (-1, 1.0, 0.0, 1.0)
    assert body["stop_token_ids"] == [2]  # the model's own


def test_seeds_are_those_of_the_call(stub: Any, engine: VllmGenerator) -> None:
    seeds = []
    for seed in (1, 1, 2):
        engine.generate([[5]], 1, SamplingParams(max_new_tokens=3, seed=seed))
        seeds.append(stub.sent("/v1/completions")[-1]["seed"])
    assert seeds[0] == seeds[1] != seeds[2]


def test_greedy_logps_are_those_of_a_point_mass(engine: VllmGenerator) -> None:
    rollout = engine.generate([[5]], 2, SamplingParams(max_new_tokens=3, temperature=0, stop_token_ids=(2,)))
    assert rollout.completions == [[[5, 2], [5, 2]]]
    assert rollout.sampler_logps == [[[0.0, 0.0], [0.0, 0.0]]]
    assert rollout.completions[0][0] is not rollout.completions[0][1]


def test_another_distribution_needs_processed_logprobs(stub: Any, llama: nn.Module) -> None:
    stub.processed = False
    engine = VllmGenerator(llama, base_url=stub.url)
    engine.generate([[5]], 1, SAMPLING)
    with pytest.raises(SetupError, match="--logprobs-mode processed_logprobs"):
        engine.generate([[5]], 1, SamplingParams(max_new_tokens=3, temperature=0.7))


@pytest.mark.parametrize(
    ("ids", "logps", "finish", "message"),
    [
        ([], [], "stop", "no token ids"),
        (None, [-1.0], "stop", "no token ids"),
        ([5, 64], [-1.0, -1.0], "stop", "vocabulary of 64"),
        ([5, "x"], [-1.0, -1.0], "stop", "vocabulary of 64"),
        ([5, 6], [-1.0], "length", "1 log-probabilities for 2 ids"),
        ([5, 6], None, "length", "no log-probabilities for 2 ids"),
        ([5, 6], [-1.0, None], "length", "not a finite number"),
        ([5, 6], [-1.0, float("nan")], "length", "not a finite number"),
        ([5, 6, 7, 8], [-1.0] * 4, "length", "4 ids, and at most 3"),
        ([5, 6], [-1.0, -1.0], "abort", "'abort'"),
    ],
)
def test_wrong_completions_are_named(
    stub: Any, engine: VllmGenerator, choice: Callable, ids: Any, logps: Any, finish: str, message: str
) -> None:
    good = {"index": 0, **choice([5], [-1.0], "length")}
    bad = {"index": 1, **choice(ids, logps, finish)}
    stub.behaviour = lambda handler, body: stub.send(handler, {"choices": [good, bad]}) or True
    with pytest.raises(RolloutError, match=message) as caught:
        engine.generate([[5]], 2, SAMPLING)
    assert "prompt 0, completion 1" in str(caught.value)


def test_a_wrong_number_of_completions_is_named(stub: Any, engine: VllmGenerator, choice: Callable) -> None:
    one = {"choices": [{"index": 0, **choice([5], [-1.0], "length")}]}
    stub.behaviour = lambda handler, body: stub.send(handler, one) or True
    with pytest.raises(RolloutError, match="1 completions of prompt 0, and 2"):
        engine.generate([[5]], 2, SAMPLING)


def test_nothing_follows_a_stop_id(stub: Any, engine: VllmGenerator, choice: Callable) -> None:
    answer = {"choices": [{"index": 0, **choice([5, 2, 6], [-1.0, -2.0, -3.0], "length")}]}
    stub.behaviour = lambda handler, body: stub.send(handler, answer) or True
    rollout = engine.generate([[5]], 1, SAMPLING)
    assert rollout.completions == [[[5, 2]]] and rollout.sampler_logps == [[[-1.0, -2.0]]]
    assert rollout.finish_reasons == [["stop"]]


def test_a_server_that_stalls_refuses_or_dies_is_named_in_time(stub: Any, llama: nn.Module) -> None:
    engine = VllmGenerator(llama, base_url=stub.url, timeout_s=60.0)
    engine.sync()
    stub.behaviour = lambda handler, body: stub.released.wait(60)
    engine.backend.timeout_s = 0.4  # type: ignore[union-attr]
    with pytest.raises(RolloutError, match=r"within 0\.4 s"):
        engine.generate([[5], [6]], 2, SAMPLING)
    engine.backend.timeout_s = 60.0  # type: ignore[union-attr]
    stub.behaviour = lambda handler, body: stub.send(handler, "CUDA out of memory", 500) or True
    with pytest.raises(RolloutError, match="500: CUDA out of memory"):
        engine.generate([[5], [6]], 2, SAMPLING)
    stub.behaviour = lambda handler, body: handler.connection.close() or True
    with pytest.raises(RolloutError, match="died"):
        engine.generate([[5], [6]], 2, SAMPLING)
    stub.close()
    with pytest.raises(RolloutError, match="not running"):
        engine.generate([[5], [6]], 2, SAMPLING)


def test_weights_are_sent_before_the_first_rollout(stub: Any, engine: VllmGenerator) -> None:
    engine.generate([[5]], 1, SAMPLING)
    engine.generate([[5]], 1, SAMPLING)
    paths = [path for path, _ in stub.requests]
    assert paths.count("/collective_rpc") == 1
    assert paths.index("/collective_rpc") < paths.index("/reset_prefix_cache") < len(paths) - 2
    assert "model.safetensors" in stub.files[0] and "config.json" in stub.files[0]


def test_of_a_lora_policy_only_the_adapter_travels(stub: Any, tmp_path: Path) -> None:
    for adapter in ("default", "other"):
        policy = lora_policy(adapter)
        before = {name: value.clone() for name, value in policy.state_dict().items() if "lora_" not in name}
        stub.model = policy
        engine = VllmGenerator(policy, base_url=stub.url, sync_dir=tmp_path)
        for _ in range(3):
            engine.sync()
        (served,) = stub.adapters
        assert served.startswith("strop-") and served.endswith("-1"), "weights that did not change need not travel"
        for count in (2, 3):
            change(policy)
            engine.sync()
            (served,) = stub.adapters
            assert served.endswith(f"-{count}")
        assert stub.sent("/collective_rpc") == []
        files = stub.files[-1]
        assert "adapter_model.safetensors" in files and "adapter_config.json" in files
        assert not any(name == "model.safetensors" for name in files)
        (left,) = tmp_path.iterdir()  # old versions are removed
        assert left.name.endswith("-3")
        now = policy.state_dict()
        assert all(torch.equal(now[name], value) for name, value in before.items())
        engine.generate([[5]], 1, SAMPLING)
        assert stub.sent("/v1/completions")[-1]["model"] == served
        engine.close()
        assert list(tmp_path.iterdir()) == [] and stub.adapters == {}


def test_a_refused_sync_keeps_the_version(stub: Any, engine: VllmGenerator) -> None:
    stub.refuse = {"/collective_rpc": (500, "boom")}
    with pytest.raises(RolloutError, match="boom"):
        engine.sync()
    stub.refuse = {}
    engine.generate([[5]], 1, SAMPLING)
    assert len(stub.sent("/collective_rpc")) == 2
    engine.close()
    assert not engine.sync_dir.exists()


def test_staged_weights_are_those_of_then_and_read_when_it_is_their_turn(stub: Any, tmp_path: Path) -> None:
    policy = lora_policy()
    engine = VllmGenerator(policy, base_url=stub.url, sync_dir=tmp_path)
    loads = []
    for _ in range(2):
        change(policy)
        loads.append((engine.stage(policy), fingerprint(policy)))
    change(policy)
    assert not stub.adapters and len(list(tmp_path.iterdir())) == 2
    for load, mark in loads:
        load()
        (folder,) = stub.adapters.values()
        read = load_file(folder / "adapter_model.safetensors")
        assert float(sum(tensor.double().sum() for tensor in read.values())) == pytest.approx(mark)
    assert len(list(tmp_path.iterdir())) == 1
    engine.close()


def fingerprint(policy: Any) -> float:
    return float(sum(p.detach().double().sum() for name, p in policy.named_parameters() if "lora_" in name))


def test_sync_takes_another_policy(stub: Any, engine: VllmGenerator) -> None:
    engine.sync(lora_policy())
    assert len(stub.adapters) == 1


def test_two_runs_share_a_server_without_meeting(stub: Any) -> None:
    first, second = (VllmGenerator(lora_policy(), base_url=stub.url) for _ in range(2))
    first.sync()
    second.sync()
    assert len(stub.adapters) == 2
    stub.close()
    first.close()  # a server that is gone is no reason to fail at the end


def test_what_vllm_cannot_do_is_refused_at_once(stub: Any, engine: VllmGenerator, llama: nn.Module) -> None:
    with pytest.raises(ConfigError, match="mixture"):
        engine.generate([[5]], 1, SAMPLING, mixture=Mixture(llama, 0.5))
    with pytest.raises(ConfigError, match="min-p before top-p"):
        engine.generate([[5]], 1, SamplingParams(max_new_tokens=3, top_p=0.9, min_p=0.1))
    with pytest.raises(ConfigError, match="temperatures below"):
        engine.generate([[5]], 1, SamplingParams(max_new_tokens=3, temperature=0.005))
    engine.generate([[5]], 1, SamplingParams(max_new_tokens=3, min_p=0.1))
    assert stub.sent("/v1/completions")[-1]["min_p"] == 0.1
    with pytest.raises(DataError, match="prompt 1"):
        engine.generate([[5], [5] * 40], 1, SAMPLING)
    with pytest.raises(ConfigError, match="server"):
        VllmGenerator(llama, mode="cloud", base_url=stub.url)
    with pytest.raises(ConfigError, match="timeout_s"):
        VllmGenerator(llama, base_url=stub.url, timeout_s=0)
    several = lora_policy()
    several.add_adapter("second", LoraConfig(target_modules=["q_proj"]))
    several.base_model.set_adapter(["default", "second"])
    with pytest.raises(SetupError, match="one LoRA adapter"):
        VllmGenerator(several, base_url=stub.url)
    with pytest.raises(SetupError, match=r"LoRA|virtual tokens"):
        VllmGenerator(
            get_peft_model(tiny_model("llama"), PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")),
            base_url=stub.url,
        )


def test_full_weights_travel_when_they_have_changed(stub: Any) -> None:
    policy = tiny_model("llama")
    engine = VllmGenerator(policy, base_url=stub.url)
    engine.sync(policy)
    engine.sync()
    assert len(stub.sent("/collective_rpc")) == 1
    change(policy)
    engine.generate([[5]], 1, SAMPLING)  # sampling alone sends nothing
    assert len(stub.sent("/collective_rpc")) == 1
    engine.sync(policy)
    assert len(stub.sent("/collective_rpc")) == 2


@pytest.mark.parametrize("path", ["/collective_rpc", "/reset_prefix_cache"])
def test_weights_that_were_not_taken_are_sent_again(stub: Any, path: str) -> None:
    policy = tiny_model("llama")
    engine = VllmGenerator(policy, base_url=stub.url)
    engine.generate([[5]], 1, SAMPLING)
    change(policy)
    stub.drops = {path}
    with pytest.raises(RolloutError, match=rf"{path} failed.*died"):
        engine.sync()
    stub.drops = set()
    engine.generate([[5]], 1, SAMPLING)
    assert len(stub.sent("/collective_rpc")) == 3


def test_a_tied_head_travels_under_its_own_name_too(stub: Any, tmp_path: Path) -> None:
    policy = tiny_model("qwen2")
    stub.model = policy
    engine = VllmGenerator(policy, base_url=stub.url, sync_dir=tmp_path)
    engine.sync()
    (folder,) = tmp_path.iterdir()
    sent = load_file(folder / "model.safetensors")
    assert torch.equal(sent["lm_head.weight"], sent["model.embed_tokens.weight"])
    assert {name: value.dtype for name, value in sent.items()} == {n: v.dtype for n, v in policy.state_dict().items()}
    assert all(torch.equal(sent[name], value) for name, value in policy.state_dict().items())


def test_another_model_is_named_before_anything_is_sampled(stub: Any, llama: nn.Module) -> None:
    stub.model = tiny_model("llama", seed=1)
    engine = VllmGenerator(llama, base_url=stub.url)
    with pytest.raises(SetupError, match=r"another model than the policy.*nats apart.*'base-model'"):
        engine.generate([[5]], 2, SAMPLING)
    assert [body["n"] for body in stub.sent("/v1/completions")] == []
    stub.model = llama
    assert engine.generate([[5]], 2, SAMPLING).finish_reasons == [["stop", "length"]]


def test_a_forgotten_engine_leaves_nothing_behind(stub: Any, tmp_path: Path) -> None:
    engine = VllmGenerator(lora_policy(), base_url=stub.url, sync_dir=tmp_path)
    engine.sync()
    assert stub.adapters and list(tmp_path.iterdir())
    del engine
    gc.collect()
    assert not stub.adapters and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(stub: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    engine = VllmGenerator(lora_policy(), base_url=stub.url, sync_dir=tmp_path / "file")
    with pytest.raises(RolloutError, match=r"could not be written to .*vllm_sync_dir"):
        engine.sync()


def test_a_colocated_vllm_serves_one_process(llama: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    with pytest.raises(SetupError, match=r"this run has 4.*strop vllm-serve"):
        make_generator("vllm", model=llama, mode="colocate")


def test_of_several_ranks_the_first_sends(stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    rank = 0

    def broadcast(values: list[Any], src: int) -> None:
        if rank == src:
            told[:] = values
        values[:] = told

    for name, value in {"is_initialized": True, "get_world_size": 2}.items():
        monkeypatch.setattr(dist, name, lambda value=value: value)
    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    monkeypatch.setattr(dist, "broadcast_object_list", broadcast)
    engines = [VllmGenerator(lora_policy(), base_url=stub.url) for _ in range(2)]
    for rank, engine in enumerate(engines):  # noqa: B007 (read by the patched functions)
        engine.sync()
    assert len(stub.sent("/v1/load_lora_adapter")) == 1
    engines[1].generate([[5]], 1, SAMPLING)
    (served,) = stub.adapters
    assert stub.sent("/v1/completions")[-1]["model"] == served
    stub.refuse = {"/v1/load_lora_adapter": (500, "boom")}
    for rank, engine in enumerate(engines):  # noqa: B007
        change(engine.weights.model)
        with pytest.raises(RolloutError, match="boom"):
            engine.sync()


@pytest.mark.parametrize("extra", [{"modules_to_save": ["lm_head"]}, {"use_dora": True}, {"bias": "all"}], ids=str)
def test_parts_of_an_adapter_that_vllm_has_not_are_refused(stub: Any, extra: dict[str, Any]) -> None:
    policy = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"], **extra))
    with pytest.raises(SetupError, match=next(iter(extra))):
        VllmGenerator(policy, base_url=stub.url)


def test_weights_spread_over_processes_are_refused(
    stub: Any, llama: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strop.rollout.limits.is_sharded", lambda model: True)
    with pytest.raises(SetupError, match="spread over processes"):
        VllmGenerator(llama, base_url=stub.url)


def test_make_generator_passes_the_settings_on(stub: Any, llama: nn.Module) -> None:
    engine = make_generator("vllm", model=llama, base_url=stub.url, timeout_s=3.0)
    assert isinstance(engine, VllmGenerator) and engine.reason == "it was asked for"
    assert engine.backend.timeout_s == 3.0  # type: ignore[union-attr]


def test_several_servers_share_the_prompts_out(make_stub: Callable, llama: nn.Module) -> None:
    stubs, prompts = [make_stub() for _ in range(3)], [[5], [6], [7], [8]]
    engine = VllmGenerator(llama, base_url=[stub.url for stub in stubs], timeout_s=5.0)
    rollout = engine.generate(prompts, 2, SamplingParams(max_new_tokens=3, seed=1))
    asked = [[body["prompt"] for body in stub.sent("/v1/completions")] for stub in stubs]
    assert [sorted(own) for own in asked] == [[[5], [8]], [[6]], [[7]]]
    alone = VllmGenerator(llama, base_url=stubs[0].url, timeout_s=5.0)
    assert rollout == alone.generate(prompts, 2, SamplingParams(max_new_tokens=3, seed=1))
    assert engine.generate([[5]], 1, SamplingParams(max_new_tokens=3)).completions[0]


def test_all_servers_get_the_weights(make_stub: Callable) -> None:
    stubs, policy = [make_stub(), make_stub()], lora_policy()
    engine = VllmGenerator(policy, base_url=[stub.url for stub in stubs], timeout_s=5.0)
    for _ in range(2):
        engine.sync(policy)
        change(policy)
    names = [list(stub.adapters) for stub in stubs]
    assert names[0] == names[1] == [engine.backend.serves]
    engine.close()
    assert not stubs[0].adapters and not stubs[1].adapters


def test_a_server_of_another_model_or_one_that_fails_ends_all(make_stub: Callable, llama: nn.Module) -> None:
    first, second = make_stub(), make_stub()
    engine = VllmGenerator(llama, base_url=[first.url, second.url], timeout_s=20.0)
    engine.generate([[5], [6]], 1, SamplingParams(max_new_tokens=3))
    asked, left = threading.Event(), threading.Event()

    def stall(handler: Any, body: dict) -> bool:
        asked.set()
        handler.connection.settimeout(15)
        try:
            handler.connection.recv(1)
        except TimeoutError:
            return True
        except OSError:
            pass
        left.set()  # the client is gone
        return True

    first.behaviour = stall
    second.behaviour = lambda handler, body: (asked.wait(15) and second.send(handler, "no memory", 500)) or True
    with pytest.raises(RolloutError, match="no memory"):
        engine.generate([[5], [6]], 1, SamplingParams(max_new_tokens=3))
    assert left.wait(10), "the one that stalls was waited for"
    second.model_card = {"data": [{"id": "another", "max_model_len": 40}]}
    with pytest.raises(SetupError, match=f"different models: {first.url} 'base-model', {second.url} 'another'"):
        VllmGenerator(llama, base_url=[first.url, second.url], timeout_s=5.0)
