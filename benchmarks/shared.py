"""What rows of a micro-batch begin with alike, computed once: an optimizer step with it and without.

    python -m benchmarks.shared --turns 5

SFT and DPO rows have a system prompt of 600 tokens in common and 200 tokens of their own (of a pair: a question of 100
and two answers of 50). The GRPO group has eight conversations of two turns on one prompt, whose second turn goes on
from the first half of the first, as where a template drops the reasoning of past turns. "Before" shares prompts within
trees only. Both ways take turns on rows of their own in one process, a step of each in a turn; the first turn is not
counted. Weights are random, of the shape of SmolLM2-135M. Without sharing, the conversations take 20 GB.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

from benchmarks.turns import RESULTS, processor, store

HEAD, QUESTION, ANSWER, OWN = 600, 100, 50, 200
PROMPT, TURN, OBSERVATION, GENERATIONS = 400, 150, 50, 8
SHAPE = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True, "max_position_embeddings": 8192,
}  # fmt: skip
CASES = {"sft, 4 rows": ("sft", 4), "sft, 8 rows": ("sft", 8), "dpo, 4 pairs": ("dpo", 4), "dpo, 8 pairs": ("dpo", 8),
         "grpo, 8 conversations that fork": ("grpo", GENERATIONS)}  # fmt: skip


def rows_of(method: str, count: int, draw: random.Random) -> list[Any]:
    """Rows with one system prompt, drawn anew at each call."""
    from strop.records import Example

    ids = lambda length: [draw.randrange(3, 40_000) for _ in range(length)]  # noqa: E731
    head = ids(HEAD)
    if method == "sft":
        return [Example(head, [ids(OWN)]) for _ in range(count)]
    return [Example(head + ids(QUESTION), [ids(ANSWER), ids(ANSWER)]) for _ in range(count)]


def conversations(count: int, draw: random.Random) -> Any:
    """A group of conversations, each on two contexts."""
    import torch

    from strop.online.groups import Group
    from strop.records import Example, Stretch

    ids = lambda length: [draw.randrange(3, 40_000) for _ in range(length)]  # noqa: E731
    written = lambda context, own: Stretch(context, own, [1] * len(own), [-1.0] * len(own))  # noqa: E731
    prompt, stretches = ids(PROMPT), []
    for _ in range(count):
        first = ids(TURN)
        stretches.append([written(prompt, first), written(prompt + first[: TURN // 2] + ids(OBSERVATION), ids(TURN))])
    whole = [[token for stretch in own for token in stretch.ids] for own in stretches]
    logps = [[-1.0] * len(own) for own in whole]
    group = Group(Example(prompt, [], row=0), whole, logps, ["stop"] * count, stretches=stretches)
    group.advantages = torch.tensor([(-1.0) ** index for index in range(count)])
    return group


def steps_of(method: str, count: int, folder: str) -> Callable[[bool, random.Random], tuple[float, float]]:
    """(whether beginnings are shared, draw) -> seconds of a step, tokens computed for each one given."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from strop.model import build_batch, pays
    from strop.testing.cases import make_trainer

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    settings = {"num_generations": count, "beta": 0.0} if method == "grpo" else {}
    rows_at_once = 2 * count if method == "grpo" else count
    trainer: Any = make_trainer(
        method, folder, model=model, dtype=torch.float32, per_device_train_batch_size=rows_at_once, **settings
    )
    if trainer.reference_scores is not None:
        trainer.reference_scores.remembers = False
    sizes: list[float] = []

    def step(shared: bool, draw: random.Random) -> tuple[float, float]:
        def build(examples: Any) -> Any:
            batch = build_batch(examples, want=trainer.build_want(), shares=pays if shared else None)
            sizes.append(batch.input_ids.numel() / batch.given_tokens)
            return batch

        trainer.build = build
        trees = trainer.trees(conversations(count, draw)) if method == "grpo" else rows_of(method, count, draw)
        trainer.model.zero_grad()
        begin = time.perf_counter()
        trainer.training_step(trainer.model, trainer.make_work(trees))
        return time.perf_counter() - begin, sizes[-1]

    return step


def measured(name: str, turns: int) -> dict[str, Any]:
    """Before and after in turns; the ratio is the median over turns."""
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        step = steps_of(*CASES[name], folder)
        found = [(step(False, draw), step(True, draw)) for _ in range(turns + 1)][1:]
    before, after = zip(*found, strict=True)
    return {
        "seconds_before": statistics.median(seconds for seconds, _ in before),
        "seconds": statistics.median(seconds for seconds, _ in after),
        "times_as_fast": statistics.median(b[0] / a[0] for b, a in found),
        "tokens_before": before[0][1],
        "tokens": after[0][1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument(
        "--name", help="also write the result into benchmarks/results/NAME.json, beside cases measured before"
    )
    options = parser.parse_args()
    path = RESULTS / f"{options.name}.json"
    results = json.loads(path.read_text())["cases"] if options.name and path.exists() else {}
    for name in options.cases:
        results[name] = measured(name, options.turns) | {"turns": options.turns, "processor": processor()}
        print(name, json.dumps(results[name]), flush=True)
        if options.name:
            command = f"python -m benchmarks.shared --turns {options.turns} --name {options.name}"
            store(path, command, cases=results)


if __name__ == "__main__":
    main()
