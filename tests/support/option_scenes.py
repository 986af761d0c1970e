"""Surroundings in which an option can act: rows of conversations, rewards that fail, a model with dropout, a vLLM."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from strop.methods import gkd as distillation
from strop.model.head import _Options
from strop.testing.cases import ONLINE, TASKS, letters_reward, method_of, rows_for, words
from strop.testing.rollouts import FixedGenerator
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import CHATML
from tests.support.tokenizers import toy_tokenizer

REMOTE_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class RemoteConfig(LlamaConfig):
    model_type = "remote-llama"

class RemoteForCausalLM(LlamaForCausalLM):
    config_class = RemoteConfig
"""
TEMPLATE = "{% for m in messages %}{{ '[' + m['role'] + '] ' + (mood or '') + m['content'] + eos_token }}{% endfor %}"
"""A chat template with a variable of its own."""


def model_for(verb: str, arch: str = "llama", **config: Any) -> Any:
    """The tiny model of a case, with further settings of its architecture."""
    vocabulary = {"vocab_size": len(toy_tokenizer("plain")), **config}
    return tiny_model(arch, task=TASKS.get(verb, "causal"), **vocabulary)


def with_dropout(verb: str, folder: Path) -> dict[str, Any]:
    """A model with dropout everywhere."""
    return {"model": model_for(verb, "gpt2", attn_pdrop=0.3, resid_pdrop=0.3, embd_pdrop=0.3)}


def single_precision(verb: str, folder: Path) -> dict[str, Any]:
    """The model in float32, which autocast acts on."""
    return {"model": model_for(verb).float()}


def undecided(verb: str, folder: Path) -> dict[str, Any]:
    """A model to which all tokens are about equally likely."""
    model = model_for(verb)
    model.lm_head.weight.data *= 0.01
    return {"model": model}


def fond_of_e(verb: str, folder: Path) -> dict[str, Any]:
    """A model that often writes an "e", and else anything."""
    model = undecided(verb, folder)["model"]
    model.lm_head.weight.data[toy_tokenizer("plain").convert_tokens_to_ids("e")] *= 300
    return {"model": model}


def wide_vocabulary(verb: str, folder: Path) -> dict[str, Any]:
    """A model whose logits take a megabyte for every few tokens."""
    made: dict[str, Any] = {"model": model_for(verb, vocab_size=20_000)}
    if verb == "gkd":
        made["trainer"] = {"teacher_model": model_for(verb, vocab_size=20_000, seed=1)}
    elif verb in ONLINE:
        made["trainer"] = {"reward_funcs": first_id_reward}
    return made


def experts(verb: str, folder: Path) -> dict[str, Any]:
    return {"model": model_for(verb, "qwen3_moe")}


def named_model(verb: str, folder: Path) -> dict[str, Any]:
    """The model as a folder."""
    return {"model": saved(model_for(verb), folder / "source")}


def remote_model(verb: str, folder: Path) -> dict[str, Any]:
    """A folder whose model needs code that comes with it."""
    path = Path(saved(model_for(verb), folder / "source"))
    settings = json.loads((path / "config.json").read_text())
    settings |= {
        "model_type": "remote-llama",
        "auto_map": {"AutoConfig": "remote.RemoteConfig", "AutoModelForCausalLM": "remote.RemoteForCausalLM"},
    }
    (path / "config.json").write_text(json.dumps(settings))
    (path / "remote.py").write_text(REMOTE_CODE)
    return {"model": str(path)}


def saved(model: Any, path: Path) -> str:
    model.float().save_pretrained(path)
    toy_tokenizer("plain").save_pretrained(path)
    return str(path)


def conversations(verb: str, folder: Path) -> dict[str, Any]:
    """The rows of a case as conversations, and a tokenizer whose template has a variable `mood`."""
    rows = [as_conversation(row) for row in rows_for(verb, 8)]
    tokenizer = toy_tokenizer("plain", chat_template=CHATML)
    (folder / "template.jinja").write_text(TEMPLATE)
    more = {"trainer": {"reward_funcs": length_reward}} if verb in ONLINE and verb != "gkd" else {}
    return {"rows": rows, "eval_rows": rows[:3], "tokenizer": tokenizer, **more}


def moody_conversations(verb: str, folder: Path) -> dict[str, Any]:
    return {**conversations(verb, folder), "tokenizer": toy_tokenizer("plain", chat_template=TEMPLATE)}


def as_conversation(row: dict[str, Any]) -> dict[str, Any]:
    """Texts of a row as messages: the prompt is the user's, the rest the assistant's."""
    roles = {"prompt": "user", "completion": "assistant", "chosen": "assistant", "rejected": "assistant"}
    return {name: [{"role": roles[name], "content": value}] if name in roles else value for name, value in row.items()}


def dialogues(verb: str, folder: Path) -> dict[str, Any]:
    """Conversations of several turns, with a template that marks what the assistant writes."""
    rng = random.Random(0)
    rows = [
        {"messages": [{"role": r, "content": words(rng, 1, 4)} for r in ("user", "assistant") * 2]} for _ in range(8)
    ]
    return {"rows": rows, "eval_rows": rows[:3], "tokenizer": toy_tokenizer("chatml_generation")}


def without_evaluation(verb: str, folder: Path) -> dict[str, Any]:
    """No evaluation set, which a limit would empty."""
    return {"eval_rows": None}


def used_folder(verb: str, folder: Path) -> dict[str, Any]:
    """Another run's checkpoint lies where the run is to go."""
    (folder / "run" / "checkpoint-1").mkdir(parents=True)
    return {}


def plain_texts(verb: str, folder: Path) -> dict[str, Any]:
    """Rows with two columns of text."""
    rng = random.Random(0)
    rows = [{"text": words(rng, 2, 6), "other": words(rng, 2, 6)} for _ in range(8)]
    return {"rows": rows, "eval_rows": rows[:3]}


def one_broken_row(verb: str, folder: Path) -> dict[str, Any]:
    rows = rows_for(verb, 8)
    return {"rows": [*rows[:3], dict.fromkeys(rows[3]), *rows[4:]]}


def one_long_prompt(verb: str, folder: Path) -> dict[str, Any]:
    rows = rows_for(verb, 8)
    return {"rows": [{**row, "prompt": "ant" * 20 if i == 3 else "ant"} for i, row in enumerate(rows)]}


def marked_steps(verb: str, folder: Path) -> dict[str, Any]:
    """Steps with their labels as marks in the text, which the rows also have as columns."""
    rows = [
        {
            "prompt": row["prompt"],
            "completion": "".join(
                f"{step} [{'+' if good else '-'}]\n"
                for step, good in zip(row["completions"], row["labels"], strict=True)
            ),
        }
        for row in rows_for(verb, 8)
    ]
    return {"rows": rows, "eval_rows": rows[:3]}


# ---- rewards ------------------------------------------------------------------------------------------------------


def length_reward(completions: list[Any], **kwargs: Any) -> list[float]:
    """Characters of a completion."""
    return [float(len(str(completion))) for completion in completions]


def first_id_reward(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """A reward of the ids, for vocabularies that the tokenizer does not know."""
    return [float(ids[0]) for ids in completion_ids]


def failing_reward(completions: list[str], **kwargs: Any) -> list[float]:
    """Fails where a completion has an odd number of characters."""
    if any(len(text) % 2 for text in completions):
        raise ValueError("odd")
    return [float(sum(map(str.isalpha, text))) for text in completions]


def homesick_reward() -> Any:
    """Turns its mind in a process that another one has started. It travels by value: nothing is imported there."""

    def homesick(completions: list[str], **kwargs: Any) -> list[float]:
        import multiprocessing

        sign = 1.0 if multiprocessing.parent_process() is None else -1.0
        return [sign * sum(map(str.isalpha, text)) for text in completions]

    return homesick


def slow_reward(completions: list[str], **kwargs: Any) -> list[float]:
    time.sleep(0.6)
    return letters_reward(completions)


def flat_reward(completions: list[str], target: list[str], **kwargs: Any) -> list[float]:
    """The same for all completions of half of the prompts."""
    return [0.0 if word < "h" else score for word, score in zip(target, letters_reward(completions), strict=True)]


def constant_reward(completions: list[str], **kwargs: Any) -> list[float]:
    return [1.0] * len(completions)


def rewarded(*functions: Any) -> Any:
    """A scene with these rewards."""

    def make(verb: str, folder: Path) -> dict[str, Any]:
        return {"trainer": {"reward_funcs": list(functions)}}

    return make


def no_reward(verb: str, folder: Path) -> dict[str, Any]:
    """No reward is given; a reward model is in the folder `score`."""
    saved(model_for("reward"), folder / "score")
    return {"trainer": {"reward_funcs": None} if verb in ONLINE else {}}


def no_teacher(verb: str, folder: Path) -> dict[str, Any]:
    """No teacher is given; one is in the folder `source`."""
    saved(model_for(verb, seed=1), folder / "source")

    def trainer(teacher_model: Any, **arguments: Any) -> Any:
        return method_of(verb).trainer()(**arguments)

    return {"trainer_class": trainer}


def policy_by_path(verb: str, folder: Path) -> dict[str, Any]:
    """A trainer that is given no model, and a model in the folder beside it."""
    trainer_class: Any = method_of(verb).trainer()
    tokenizer, source = toy_tokenizer("plain"), Path(saved(model_for(verb), folder / "source"))
    tokenizer.save_pretrained(source)

    class Modelless(trainer_class):  # type: ignore[misc]
        def __init__(self, model: Any = None, **kwargs: Any) -> None:
            super().__init__(**kwargs)

    return {"trainer_class": Modelless}


def named_teacher(verb: str, folder: Path) -> dict[str, Any]:
    return {"trainer": {"teacher_model": saved(model_for(verb, seed=1), folder / "source")}}


def embedded_prompts(verb: str, folder: Path) -> dict[str, Any]:
    """Prompts with an embedding, so that rows are weighted by how their prompts are distributed."""
    return {"trainer": {"embedding_func": embedding, "embedding_tokenizer": toy_tokenizer("plain")}}


def embedding(input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """Counts of the ids, modulo 8."""
    hot = torch.nn.functional.one_hot(input_ids % 8, 8) * attention_mask[..., None]
    return hot.sum(1).float()


# ---- what happens to a run ----------------------------------------------------------------------------------------


def poison(trainer: Any) -> None:
    """The loss of the first step is not a number."""
    reduce = trainer.reduce

    def poisoned(output: Any, micro: Any) -> torch.Tensor:
        loss = reduce(output, micro)
        return loss * float("nan") if trainer.state.global_step == 0 else loss

    trainer.reduce = poisoned


class StubVllm:
    """Stands in for both ways to reach vLLM: answers from a fixed random source, and keeps what it was made with."""

    processed_logprobs = True
    context_tokens = None
    serves = "the policy"

    record: list[Any]

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self.record.append((type(self).__name__, arguments, settings))

    def complete(self, requests: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        return [[self.choice(request, index) for index in range(request["n"])] for request in requests]

    def choice(self, request: dict[str, Any], index: int) -> dict[str, Any]:
        rng = random.Random(f"{request['seed']} {index}")
        ids = [rng.randrange(10, 200) for _ in range(request["max_tokens"])]
        return {"index": index, "ids": ids, "logps": [-4 * rng.random() for _ in ids], "finish": "length"}

    def load_tensors(self, weights: Any) -> None:
        pass

    def reload_weights(self, folder: Path) -> None:
        """Note whether the files are where the run is, or in a folder that the engine made elsewhere."""
        self.record.append(Path(folder).is_relative_to(Path.cwd()))

    def close(self) -> None:
        pass


@contextlib.contextmanager
def stub_vllm() -> Iterator[list[Any]]:
    """vLLM replaced by a stub; yields the arguments that reach it."""
    record: list[Any] = []
    home = "strop.rollout.vllm_engine"
    with (
        mock.patch(f"{home}.VllmInProcess", type("InProcess", (StubVllm,), {"record": record})),
        mock.patch(f"{home}.VllmServer", type("Server", (StubVllm,), {"record": record})),
        mock.patch(f"{home}.VllmGenerator._compare"),  # a stub serves no model that could be the policy
    ):
        yield record


class EngineBeside(FixedGenerator):
    """An engine that could sample while the policy learns, in this process."""

    def __init__(self, model: Any, *, tokenizer: Any, **settings: Any) -> None:
        super().__init__(len(tokenizer), tokenizer.eos_token_id)

    def stage(self, model: Any) -> Callable[[], None]:
        return lambda: None


@contextlib.contextmanager
def engine_beside() -> Iterator[None]:
    """The process that samples ahead replaced by a stub."""
    with mock.patch("strop.online.sampling.ProcessGenerator", EngineBeside):
        yield


@contextlib.contextmanager
def ray_actors() -> Iterator[list[dict[str, Any]]]:
    """Actors of Ray replaced by a stub in this process; yields the settings that reach it."""
    record: list[dict[str, Any]] = []

    def noted(model: Any, **settings: Any) -> EngineBeside:
        record.append({name: settings[name] for name in ("workers", "seconds")})
        return EngineBeside(model, **settings)

    with mock.patch("strop.online.sampling.RayGenerator", noted):
        yield record


@contextlib.contextmanager
def wakeups() -> Iterator[list[bool]]:
    """Yields whether a thread is woken by signals, as often as that changes."""
    record: list[bool] = []
    inner = signal.set_wakeup_fd

    def noted(descriptor: int, **options: bool) -> int:
        record.append(descriptor >= 0)
        return inner(descriptor, **options)

    with mock.patch.object(signal, "set_wakeup_fd", noted):
        yield record


@contextlib.contextmanager
def head_chunks() -> Iterator[list[int]]:
    """Yields how many rows of logits the language-model head makes at once, call by call."""
    record: list[int] = []
    plan = _Options.plan

    def noted(*args: Any) -> tuple[int, bool]:
        chunk, kept = plan(*args)
        record.append(chunk)
        return chunk, kept

    with mock.patch.object(_Options, "plan", noted):
        yield record


@contextlib.contextmanager
def divergence_chunks() -> Iterator[list[int]]:
    """Yields how many tokens' distributions GKD compares at once, call by call."""
    record: list[int] = []
    fused = distillation.fused_jsd

    def noted(*args: Any, chunk: int, **kwargs: Any) -> torch.Tensor:
        record.append(chunk)
        return fused(*args, chunk=chunk, **kwargs)

    with mock.patch.object(distillation, "fused_jsd", noted):
        yield record


@contextlib.contextmanager
def without_cuda() -> Iterator[None]:
    """The machine as one without a CUDA device."""
    with mock.patch.object(torch.cuda, "is_available", lambda: False):
        yield
