"""`strop demo`: from random weights to a skill. SFT, a reward model, DPO, with before and after in one table.

The start is noisy by design. Three of five demonstrations are wrong, so the model after SFT can spell a word backward
but mostly copies it. No new demonstration is added after that: the model's own samples, sorted into right and wrong by
a verifier, are all that the reward model and DPO learn from.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

from strop.demo.model import build_model, build_tokenizer
from strop.demo.sampling import best_by_reward, sampler_of
from strop.demo.task import RIGHT_SHARE, accuracy, pair_rows, prompt_of, sft_rows, spells_backward
from strop.demo.words import held_out_words, train_words
from strop.disk import write_text
from strop.engine.trainer import BaseTrainer
from strop.methods.dpo import DPOConfig, DPOTrainer
from strop.methods.reward import RewardConfig, RewardTrainer
from strop.methods.sft import SFTConfig, SFTTrainer
from strop.report import write_report

NOTE = (
    "The start is noisy by design: three of five demonstrations copy the word instead of spelling it backward, so the "
    "model after SFT has the skill and mostly does not use it. The reward model and DPO learn from the model's own "
    "samples, sorted by a verifier; they see no new demonstration and none of the words it is tested on."
)


@dataclass(frozen=True)
class Schedule:
    """How much of everything: rows, words, epochs. Learning rates fall linearly to 0."""

    demonstrations: int = 19_200
    sft_batch: int = 64
    sft_learning_rate: float = 3e-3
    prompts: int = 1024  # training words that are sampled for pairs
    samples: int = 8  # completions per prompt
    pairs_per_prompt: int = 2
    pair_batch: int = 32
    reward_learning_rate: float = 1e-3
    reward_epochs: float = 3
    dpo_learning_rate: float = 3e-4
    dpo_epochs: float = 2
    watch_every: int = 10  # steps between looks at the held-out words during DPO
    held_out: int = 400  # words that accuracy is measured on
    shown: int = 8  # words in the table of samples
    pairs_need_samples: bool = True  # False: the right answer itself is the chosen one where no sample is right


FAST = Schedule(demonstrations=256, prompts=32, samples=3, held_out=16, reward_epochs=1, dpo_epochs=1, shown=3,
                pairs_need_samples=False)  # fmt: skip
"""A few steps of everything, to see that it runs; it teaches next to nothing."""


@dataclass
class Demo:
    """What the stages of one demonstration share."""

    folder: Path
    seed: int
    plan: Schedule
    console: Console
    tokenizer: Any = field(default_factory=build_tokenizer)
    trainer: BaseTrainer | None = None  # of the stage that is going on
    seconds: dict[str, float] = field(default_factory=dict)  # stage -> wall time
    results: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        """Announce a stage and take its time."""
        self.console.rule(f"[bold]{title}", align="left")
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        self.console.print(f"[dim]{self.seconds[name]:.1f} s[/dim]")

    def train(
        self, name: str, trainer: type[BaseTrainer], config: Any, given: dict[str, Any], *, batch: int, **settings: Any
    ) -> Any:
        """Train, save the model into the folder of that name, and return the trainer."""
        args = config(
            output_dir=str(self.folder / name), lr_scheduler_type="linear", warmup_steps=10, max_length=None,
            per_device_train_batch_size=batch, per_device_eval_batch_size=2 * batch, gradient_checkpointing=False,
            save_strategy="no", report_to="none", seed=self.seed, **settings,
        )  # fmt: skip
        self.trainer = trainer(args=args, processing_class=self.tokenizer, **given)
        self.trainer.train()
        self.trainer.save_model()
        return self.trainer

    def greedy(self, model: Any) -> list[tuple[str, str, bool]]:
        """Prompt, greedy completion and whether that is right, for each held-out word."""
        prompts = [prompt_of(word) for word in held_out_words(self.plan.held_out)]
        texts = [group[0] for group in sampler_of(model, self.tokenizer, temperature=0.0)(prompts, 1)]
        return [(prompt, text, spells_backward(prompt, text)) for prompt, text in zip(prompts, texts, strict=True)]

    def measure(self, model: Any, when: str) -> None:
        """The share of held-out words spelled right, greedily and over 4 samples of each; and how the first are."""
        found = self.greedy(model)
        words = held_out_words(self.plan.held_out)
        self.results[when] = share_of_right(found)
        self.results[f"{when}_sampled"] = accuracy(words, sampler_of(model, self.tokenizer, seed=self.seed), n=4)
        self.results[f"spelled_{when}"] = [
            f"{text.strip()} {'✓' if right else '✗'}" for _, text, right in found[: self.plan.shown]
        ]


class Watch(TrainerCallback):
    """Every few steps: the accuracy on held-out words as a metric, and what the model writes for the shown words."""

    def __init__(self, demo: Demo) -> None:
        self.demo = demo

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        plan, trainer = self.demo.plan, self.demo.trainer
        if trainer is None or (state.global_step % plan.watch_every and state.global_step != 1):
            return
        found = self.demo.greedy(trainer.model)
        due = control.should_log
        trainer.log({"held_out_accuracy": share_of_right(found)})
        control.should_log = due  # logging clears it, and the step's own line may still be due
        shown = ({"prompt": p, "completion": c, "reward": float(r)} for p, c, r in found[: plan.shown])
        trainer.run_directory.write_samples(state.global_step, shown)


def share_of_right(found: Sequence[tuple[str, str, bool]]) -> float:
    return sum(right for _, _, right in found) / len(found)


def run_demo(output_dir: str | Path = "runs/demo", seed: int = 0, fast: bool = False) -> dict[str, Any]:
    """Run the whole demonstration and return what summary.json holds.

    Args:
        output_dir: gets `sft/`, `reward/`, `dpo/` (models and metrics), summary.json and report.html.
        seed: of everything random.
        fast: a few steps only, to see that everything runs.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    demo = Demo(Path(output_dir), seed, FAST if fast else Schedule(), Console())
    start = time.perf_counter()
    demo.console.print(f"[bold]Spell a word backward[/bold]: stone -> enots. {NOTE}\n", highlight=False)
    model = supervised(demo)
    pairs, held_out_pairs = preferences(demo, model)
    given = {"model": str(demo.folder / "sft"), "train_dataset": pairs, "eval_dataset": held_out_pairs}
    reward_model(demo, model, given)
    preference_optimisation(demo, given)
    demo.results["seconds"] = round(time.perf_counter() - start, 1)
    return finish(demo, fast)


def supervised(demo: Demo) -> Any:
    """Stage 1: learn from demonstrations of mixed quality."""
    plan = demo.plan
    with demo.stage("sft", f"1 SFT: {plan.demonstrations:,} demonstrations, {RIGHT_SHARE:.0%} of them right"):
        rows = sft_rows(plan.demonstrations, demo.seed)
        given = {"model": build_model(demo.tokenizer, demo.seed), "train_dataset": rows}
        trainer = demo.train(
            "sft", SFTTrainer, SFTConfig, given, batch=plan.sft_batch, num_train_epochs=1,
            learning_rate=plan.sft_learning_rate, logging_steps=15,
        )  # fmt: skip
        demo.measure(trainer.model, "before")
        demo.console.print(f"held-out words spelled backward: {demo.results['before']:.1%} greedy")
    return trainer.model


def preferences(demo: Demo, model: Any) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Stage 2: sample, and let the verifier make pairs, of training words and (for evaluation) of held-out words."""
    plan = demo.plan
    with demo.stage("sampling", f"2 Sample {plan.samples} completions for each of {plan.prompts:,} training words"):
        sample = sampler_of(model, demo.tokenizer, seed=demo.seed + 1)
        options = {"n": plan.samples, "seed": demo.seed, "per_prompt": plan.pairs_per_prompt,
                   "answer_if_none": not plan.pairs_need_samples}  # fmt: skip
        pairs = pair_rows(train_words()[: plan.prompts], sample, **options)
        held_out = pair_rows(held_out_words(plan.held_out), sample, **options)
        demo.results["pairs"] = len(pairs)
        demo.console.print(f"{len(pairs)} pairs of a right and a wrong completion", highlight=False)
    return pairs, held_out


def reward_model(demo: Demo, model: Any, given: dict[str, Any]) -> None:
    """Stage 3: learn to score completions; then pick the best of several samples by that score."""
    plan, found = demo.plan, demo.results
    with demo.stage("reward", f"3 Reward model: {found['pairs']} pairs"):
        trainer = demo.train(
            "reward", RewardTrainer, RewardConfig, given, batch=plan.pair_batch, num_train_epochs=plan.reward_epochs,
            learning_rate=plan.reward_learning_rate, logging_steps=5,
        )  # fmt: skip
        found["reward_accuracy"] = trainer.evaluate()["eval_accuracy"]
        prompts = [prompt_of(word) for word in held_out_words(plan.held_out)]
        samples = sampler_of(model, demo.tokenizer, seed=demo.seed + 2)(prompts, plan.samples)
        best = best_by_reward(trainer.model, demo.tokenizer, prompts, samples)
        found["best_of_n"] = sum(map(spells_backward, prompts, best)) / len(prompts)
        demo.console.print(
            f"{found['reward_accuracy']:.1%} of held-out pairs ranked right; "
            f"the best of {plan.samples} samples by its score is right for {found['best_of_n']:.1%} of words"
        )


def preference_optimisation(demo: Demo, given: dict[str, Any]) -> None:
    """Stage 4: DPO with the likelihood of the chosen completion beside it, which holds it up."""
    plan = demo.plan
    with demo.stage("dpo", f"4 DPO: the same {demo.results['pairs']} pairs"):
        trainer = demo.train(
            "dpo", DPOTrainer, DPOConfig, given | {"callbacks": [Watch(demo)]}, batch=plan.pair_batch,
            num_train_epochs=plan.dpo_epochs, learning_rate=plan.dpo_learning_rate, logging_steps=5,
            loss_type=["sigmoid", "sft"], loss_weights=[1.0, 1.0], beta=0.1,
        )  # fmt: skip
        trainer.evaluate()
        demo.measure(trainer.model, "after")


def finish(demo: Demo, fast: bool) -> dict[str, Any]:
    """Print the result, write summary.json and report.html."""
    plan, found = demo.plan, demo.results
    before, after = found.pop("spelled_before"), found.pop("spelled_after")
    words = held_out_words(plan.shown)
    tables: list[dict[str, Any]] = [
        {
            "title": "Accuracy",
            "columns": ("held-out words right", "greedy", "sampled"),
            "rows": [
                ("after SFT", f"{found['before']:.1%}", f"{found['before_sampled']:.1%}"),
                (f"best of {plan.samples} samples by the reward model", "", f"{found['best_of_n']:.1%}"),
                ("after DPO", f"{found['after']:.1%}", f"{found['after_sampled']:.1%}"),
            ],
        },
        {
            "title": "Held-out words",
            "columns": ("word", "after SFT", "after DPO"),
            "rows": list(zip(words, before, after, strict=True)),
        },
    ]
    summary = {
        "title": "Spell a word backward",
        "metric": f"held-out words spelled backward, greedy, of {plan.held_out}",
        "before_name": "after SFT",
        "after_name": "after DPO",
        "note": NOTE + (" This was the fast run, which teaches next to nothing." if fast else ""),
        "tables": tables,
        "seed": demo.seed,
        "fast": fast,
        "stage_seconds": {name: round(value, 1) for name, value in demo.seconds.items()},
        **found,
    }
    write_text(demo.folder / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    page = write_report(demo.folder)
    demo.console.rule("[bold]Result", align="left")
    for shown in tables:
        table = Table(*shown["columns"])
        for row in shown["rows"]:
            table.add_row(*row)
        demo.console.print(table)
    demo.console.print(f"{found['seconds']:.0f} s in all. Report: {page}", highlight=False, soft_wrap=True)
    return summary
