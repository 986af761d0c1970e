"""An engine in a process of its own: the same samples, the weights that were staged, and a death that is named."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import cloudpickle
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from strop.errors import DataError, RolloutError, SetupError
from strop.model import make_reference
from strop.rollout import SamplingParams, own_process
from strop.rollout.generator import Mixture, keeping
from strop.rollout.native import NativeGenerator
from strop.rollout.own_process import ProcessGenerator, Sampler, TrainedWeights, half_of_the_threads, packed
from strop.testing.tiny import tiny_model

SAMPLING = SamplingParams(max_new_tokens=6, seed=3, stop_token_ids=())
PROMPTS = [[5, 6, 7], [8]]


@pytest.fixture(scope="module")
def policy() -> nn.Module:
    model = tiny_model("llama", dtype=torch.float32)
    model.get_input_embeddings().weight.requires_grad = False
    return model


@pytest.fixture(scope="module")
def engine(policy: nn.Module) -> Iterator[ProcessGenerator]:
    made = ProcessGenerator(policy, reference=make_reference(policy), engine="native")
    yield made
    made.close()


def move(policy: nn.Module) -> None:
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn_like(weight))


def test_it_samples_what_the_engine_here_samples_from_the_weights_that_were_staged(
    policy: nn.Module, engine: ProcessGenerator
) -> None:
    here = NativeGenerator(policy)
    engine.sync(policy)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(engine.process.pid, number)  # a run that is told to stop still ends its step
    assert engine.generate(PROMPTS, 2, SAMPLING) == here.generate(PROMPTS, 2, SAMPLING)
    assert (engine.name, engine.reason) == ("native", "its logits agree with the model's own forward pass")
    move(policy)
    staged, load = here.generate(PROMPTS, 2, SAMPLING), engine.stage(policy)
    move(policy)
    load()
    assert engine.generate(PROMPTS, 2, SAMPLING) == staged != here.generate(PROMPTS, 2, SAMPLING)


def test_weights_that_are_frozen_in_mid_run_are_sent_a_last_time(policy: nn.Module, engine: ProcessGenerator) -> None:
    """A callback freezes what the steps since the last sync have moved; or moves a weight that is frozen."""
    here = NativeGenerator(policy)
    engine.sync(policy)
    trained = [weight for weight in policy.parameters() if weight.requires_grad]
    move(policy)
    try:
        for weight in trained:
            weight.requires_grad = False
        for _ in range(2):
            engine.sync(policy)
            assert engine.generate(PROMPTS, 2, SAMPLING) == here.generate(PROMPTS, 2, SAMPLING)
            assert engine._trained.since(policy) == {}, "and then no more"
            with torch.no_grad():
                policy.get_input_embeddings().weight.add_(0.1)
    finally:
        for weight in trained:
            weight.requires_grad = True


def test_it_samples_from_its_own_copy_of_the_reference(policy: nn.Module, engine: ProcessGenerator) -> None:
    move(policy)
    engine.sync(policy)
    here, reference = NativeGenerator(policy), engine.reference.model
    drawn = []
    for weight in (0.5, 1.0):
        mixture = Mixture(reference, weight)
        drawn.append(engine.generate(PROMPTS, 2, SAMPLING, mixture=mixture))
        assert drawn[-1] == here.generate(PROMPTS, 2, SAMPLING, mixture=mixture)
    move(policy)
    engine.sync(policy)
    again = [engine.generate(PROMPTS, 2, SAMPLING, mixture=Mixture(reference, weight)) for weight in (0.5, 1.0)]
    assert again[1] == drawn[1] != drawn[0] != again[0]


def test_a_reference_inside_the_policy_goes_with_it() -> None:
    base = tiny_model("llama", dtype=torch.float32)
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    alone = NativeGenerator(tiny_model("llama", dtype=torch.float32)).generate(PROMPTS, 2, SAMPLING)
    policy = get_peft_model(base, config)
    reference = make_reference(policy)
    sampler = Sampler()
    sampler.start(cloudpickle.dumps((policy, None, {"engine": "native"}, reference)))
    move(policy)
    sampler.load(packed(TrainedWeights().since(policy)))
    assert sampler.generate(PROMPTS, 2, SAMPLING, 1.0) == alone != sampler.generate(PROMPTS, 2, SAMPLING)


def test_keys_are_kept_for_the_turns_of_a_conversation_until_weights_change(
    policy: nn.Module, engine: ProcessGenerator
) -> None:
    here, prompts = NativeGenerator(policy), [list(range(5, 60)), [8] * 50]
    engine.sync(policy)
    with keeping(engine), keeping(here):
        first = engine.generate(prompts, 1, SAMPLING)
        longer = [prompt + said[0] + [9] for prompt, said in zip(prompts, first.completions, strict=True)]
        assert here.generate(prompts, 1, SAMPLING) == first
        second = engine.generate(longer, 1, SAMPLING)
        assert second == here.generate(longer, 1, SAMPLING) and second.prefilled < sum(map(len, longer))
        engine.sync(policy)
        assert engine.generate(longer, 1, SAMPLING).prefilled == sum(map(len, longer))
    assert engine.generate(longer, 1, SAMPLING).prefilled == sum(map(len, longer))


def test_errors_cross_the_border_with_their_names(policy: nn.Module, engine: ProcessGenerator) -> None:
    engine.sync(policy)
    with pytest.raises(DataError, match="prompt 0 has no tokens"):
        engine.generate([[]], 1, SAMPLING)
    with pytest.raises(RolloutError, match="Sampling failed in its process: AttributeError"):
        engine.generate(PROMPTS, 1, None)  # type: ignore[arg-type]
    with pytest.raises(SetupError, match="no second model"):
        ProcessGenerator(policy).generate(PROMPTS, 1, SAMPLING, mixture=Mixture(policy, 0.5))


def test_the_cores_are_divided_between_learning_and_sampling(policy: nn.Module) -> None:
    """For as long as the policy learns; the sampling process has as many as who hands it the weights."""
    sampler, threads = Sampler(), torch.get_num_threads()
    sampler.start(cloudpickle.dumps((policy, None, {"engine": "native"}, None)))
    engine, asked = ProcessGenerator(policy), []
    engine.process, engine._ask = threading, lambda *content: asked.append(content)  # type: ignore[assignment]
    torch.set_num_threads(5)
    try:
        with half_of_the_threads():
            assert torch.get_num_threads() == 2
            load = engine.stage(policy)
        assert torch.get_num_threads() == 5
        load()
        sampler.load(*asked[0][1:])
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        with half_of_the_threads():
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)


def test_a_policy_that_cannot_be_sent_is_named() -> None:
    policy = tiny_model("llama")
    policy.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(SetupError, match="This policy cannot be sent to a sampling process: TypeError"):
        ProcessGenerator(policy).sync()


def test_its_death_is_seen_while_it_is_waited_for(policy: nn.Module, engine: ProcessGenerator) -> None:
    engine.sync(policy)
    os.kill(engine.process.pid, signal.SIGKILL)
    with pytest.raises(RolloutError, match=r"The process that samples died \(exit code -9"):
        engine.generate(PROMPTS, 1, SAMPLING)
    engine.sync(policy)  # the run that goes on from the last checkpoint has another
    assert engine.generate(PROMPTS, 1, SAMPLING) == NativeGenerator(policy).generate(PROMPTS, 1, SAMPLING)


def test_a_start_that_failed_is_named_each_time(policy: nn.Module) -> None:
    engine = ProcessGenerator(policy, engine="native", max_slots="many")
    for _ in range(2):
        with pytest.raises(RolloutError, match="Sampling failed in its process: TypeError"):
            engine.sync(policy)
        assert engine.process is None


def test_an_answer_that_was_not_waited_for_is_not_the_next_one_s(
    policy: nn.Module, engine: ProcessGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    engine.close()
    with monkeypatch.context() as patched:
        patched.setattr(own_process, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.stage(policy)
    engine.sync(policy)  # as in a notebook, where the cell is run again
    assert len(engine.generate(PROMPTS, 1, SAMPLING).completions) == 2


def test_a_process_that_hangs_is_ended_in_time(policy: nn.Module, engine: ProcessGenerator) -> None:
    engine.close()
    engine.sync(policy)
    process = engine.process
    os.kill(process.pid, signal.SIGSTOP)
    engine.timeout_s = 0.2
    with pytest.raises(RolloutError, match=r"lives and gave no answer within ddp_timeout=0\.2 seconds"):
        engine.generate(PROMPTS, 1, SAMPLING)
    process.join(10)
    assert process.exitcode == -signal.SIGKILL and engine.process is None
