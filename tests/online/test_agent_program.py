"""Training by an agent program: what is learned is what was sampled, as by an environment; runs can be resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import httpx2
import pytest
import torch
from peft import LoraConfig
from tests.support.conversations import Script, sampler_logps_of
from tests.support.processes import run_ranks
from tests.support.templates import KINDS, tokenizer_with

from strop import GRPOTrainer
from strop.agents import AgentProgram
from strop.agents.tools import Tools
from strop.errors import ConfigError
from strop.testing.cases import make_trainer
from strop.testing.tiny import tiny_model

ROWS = [{"prompt": [{"role": "user", "content": f"go {i}"}], "start": i} for i in range(2)]


def double(a: int) -> int:
    """Twice a number.

    Args:
        a: The number.
    """
    return 2 * a


def talker(endpoint, row):
    """Asks twice, and goes on with what it was told."""
    messages, said, most = list(row["prompt"]), [], row.get("most", 6)
    with httpx2.Client(trust_env=False, timeout=60, headers={"Authorization": f"Bearer {endpoint.api_key}"}) as client:
        for _ in range(2):
            answer = client.post(
                f"{endpoint.base_url}/chat/completions", json={"messages": messages, "max_tokens": most}
            )
            messages += [answer.json()["choices"][0]["message"], {"role": "user", "content": "and?"}]
            said.append(messages[-2]["content"])
    return {"said": said, "length": len("".join(said))}


class AndThen:
    """What `talker` does, as an environment."""

    def reset(self, **row):
        self.turns = 0

    def step(self, text):
        self.turns += 1
        return "and?", self.turns == 2


def rewarded(completions, **columns):
    return [float(len(str(completion)) % 7) for completion in completions]


def build(folder, verb="grpo", kind="gathered", rows=ROWS, **settings):
    tokenizer, _ = tokenizer_with(KINDS[kind])
    model = tiny_model("llama", dtype=settings.pop("dtype", torch.float64), vocab_size=len(tokenizer))
    given = {"rollout_func": AgentProgram(talker, gather_seconds=10.0), "reward_funcs": rewarded}
    given |= settings.pop("trainer", {})
    options = {"max_completion_length": 60, "num_generations": 2, "max_length": None, **settings}
    return make_trainer(verb, folder, rows=rows, model=model, tokenizer=tokenizer, trainer=given, **options)


@pytest.mark.parametrize("kind", ["gathered", "opened"])
def test_what_is_learned_is_what_was_sampled(kind, tmp_path):
    """The log-probs of each trained token are the model's own, whoever's batch it was sampled in."""
    trainer = build(tmp_path, kind=kind)
    groups = trainer.rollout([trainer.train_dataset[i] for i in range(2)], 2, training=True)
    trainer.score_groups(groups, "train")
    tokenizer = trainer.processing_class
    for group in groups:
        group.advantages = torch.ones(2)
        trees = trainer.trees(group)
        scores = trainer.score(trainer.model, trainer.build(trees), log=False)
        wrote = sampler_logps_of(trees)
        assert torch.allclose(scores.logps.detach(), torch.tensor(wrote).double(), atol=1e-6)
        for ids, mask, said in zip(group.completions, group.loss_mask, group.extra["said"], strict=True):
            written = tokenizer.decode([i for i, on in zip(ids, mask, strict=True) if on], skip_special_tokens=True)
            assert "".join(said) in written or kind == "opened"
    metrics = trainer._metrics["train"].drain()
    assert metrics["turns/mean_count"] == 2.0 and metrics["turns/failed"] == 0.0
    assert (metrics["turns/forked"] == 1.0) == (kind == "opened")


def multiplier(endpoint, row):
    """Asks twice, with a tool that it calls itself."""
    tools, messages = Tools([double]).schemas, list(row["prompt"])
    head = {"Authorization": f"Bearer {endpoint.api_key}"}
    with httpx2.Client(trust_env=False, timeout=60, headers=head) as client:
        while messages[-1]["role"] != "assistant" or messages[-1].get("tool_calls"):
            for call in messages[-1].get("tool_calls", ()):
                told = str(double(**json.loads(call["function"]["arguments"])))
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": told})
            asked = {"messages": messages, "tools": tools}
            answer = client.post(f"{endpoint.base_url}/chat/completions", json=asked)
            messages.append(answer.json()["choices"][0]["message"])


def speak(text: str, place: int) -> str:
    number, doubled = len(text) + place % 4, "<r>" in text
    call = f'<tool_call>\n{{"name": "double", "arguments": {{"a": {number}}}}}\n</tool_call>'
    return f"so {number} {'abc'[: place % 4]}" if doubled or "double" not in text else call


@pytest.mark.parametrize(
    ("agent", "same"), [(talker, {"environment_factory": AndThen}), (multiplier, {"tools": [double]})]
)
def test_the_gradient_is_that_of_the_same_conversation_on_the_other_path(agent, same, tmp_path):
    """An agent that only goes on is an environment that answers the same, or a tool: same ids, same gradient."""
    rows = [{**row, "most": 40} for row in ROWS]
    fixed = {"rows": rows, "learning_rate": 1e-2, "max_steps": 1, "optim": "sgd", "per_device_train_batch_size": 4}
    ways = {"agent": {"rollout_func": AgentProgram(agent, gather_seconds=10.0)}, "same": {"rollout_func": None, **same}}
    weights, samples = {}, {}
    for name, given in ways.items():
        trainer = build(tmp_path / name, trainer=given, **fixed, max_completion_length=150)
        before = [p.detach().clone() for p in trainer.model.parameters()]
        trainer._generator = Script(trainer.processing_class, speak)
        trainer.train()
        weights[name] = [p.detach().clone() for p in trainer.model.parameters()]
        assert any(not torch.equal(a, b) for a, b in zip(weights[name], before, strict=True))
        lines = (tmp_path / name / "samples.jsonl").read_text().splitlines()
        samples[name] = [json.loads(line) for line in lines]
    for field in ("completion", "turns", "advantage", "finish_reason"):
        assert [r[field] for r in samples["agent"]] == [r[field] for r in samples["same"]]
    assert len(samples["agent"][0]["turns"]) == 3
    for one, other in zip(weights["agent"], weights["same"], strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_rewards_see_messages_and_what_the_agent_returned(tmp_path):
    seen = {}

    def reward(completions, prompts, said, length, start, **columns):
        seen.update(completions=completions, prompts=prompts, said=said, start=start)
        return [float(number) for number in length]

    trainer = build(tmp_path, trainer={"reward_funcs": reward}, rows=[{"prompt": "go", "start": 3}] * 2, max_steps=1,
                    logging_steps=1)  # fmt: skip

    def plain(endpoint, row):
        assert row == {"prompt": "go", "start": 3}
        return talker(endpoint, {"prompt": [{"role": "user", "content": row["prompt"]}]})

    trainer.turns.program.agent = plain
    trainer.train()
    assert [m["role"] for m in seen["completions"][0]] == ["assistant", "user", "assistant"]
    assert seen["prompts"][0] == [{"role": "user", "content": "go"}] and seen["start"][0] == 3
    assert [m["content"] for m in seen["completions"][0][::2]] == seen["said"][0]
    row = json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[0])
    assert row["columns"]["said"] == [turn["content"] for turn in row["turns"][::2]]


def test_a_resumed_run_is_the_same_run(tmp_path):
    """Random numbers belong to a trajectory and its call, so that a resumed run samples what the whole one did."""
    rows = [{"prompt": [{"role": "user", "content": f"go {i}"}], "start": i} for i in range(4)]
    given = {"rows": rows, "max_steps": 3, "save_steps": 1, "save_strategy": "steps", "logging_steps": 1}
    whole = build(tmp_path / "whole", "rloo", **given)
    whole.train()
    (tmp_path / "part").mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoint-1", tmp_path / "part" / "checkpoint-1")
    part = build(tmp_path / "part", "rloo", **given)
    part.train(resume_from_checkpoint=True)
    assert part.state.global_step == 3
    for one, other in zip(whole.model.parameters(), part.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def one_step(folder, ranks):
    """The weights before and after a step on two prompts, over one process or two; and what was logged."""
    if ranks > 1:
        torch.distributed.init_process_group("gloo")
    trainer = build(
        Path(folder) / f"of-{ranks}", rows=[{**row, "most": 40} for row in ROWS], learning_rate=0.1, max_steps=1,
        optim="sgd", per_device_train_batch_size=4 // ranks, scale_rewards="batch",
        **({"ddp_backend": "gloo"} if ranks > 1 else {}),
    )  # fmt: skip
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer._generator = Script(trainer.processing_class, lambda text, place: f"so {'abc'[: place % 2]}{len(text) % 3}")
    trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model)
    return before, [p.detach().clone() for p in model.parameters()], trainer.state.log_history[0]


def test_two_processes_learn_what_one_does(tmp_path):
    """Each has a server and agents of its own."""
    before, alone, logged = one_step(str(tmp_path), 1)
    assert any(not torch.equal(a, b) for a, b in zip(before, alone, strict=True))
    for _, both, other in run_ranks(one_step, 2, tmp_path / "ranks", str(tmp_path), 2):
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(alone, both, strict=True))
        names = [name for name in logged if name.startswith(("reward", "turns/")) and not name.endswith("_time")]
        assert {name: other[name] for name in names} == pytest.approx({name: logged[name] for name in names})


def test_an_adapter_in_half_precision_learns_from_an_agent(tmp_path):
    adapter = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    trainer = build(tmp_path, trainer={"peft_config": adapter}, dtype=torch.float32, bf16=True, max_steps=2,
                    learning_rate=1e-2, logging_steps=1, per_device_train_batch_size=4)  # fmt: skip
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all("lora_" in name for name in moved)
    for line in trainer.state.log_history[:2]:
        assert line["turns/mean_count"] == 2.0 and line["turns/failed"] == 0.0
        assert line["sampling/sampling_logp_difference/mean"] < 0.05


def test_what_cannot_be_trained_so_is_refused_when_the_trainer_is_made(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="leave out tools"):
        build(tmp_path, trainer={"tools": [double]})
    with pytest.raises(ConfigError, match="a function or an AgentProgram; got 3"):
        build(tmp_path, trainer={"rollout_func": 3})
    monkeypatch.setattr(GRPOTrainer, "can_fork", False)
    with pytest.raises(ConfigError, match="GRPO and RLOO"):
        build(tmp_path)
