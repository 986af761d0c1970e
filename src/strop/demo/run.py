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

import torch
from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

from strop.demo.model import build_model, build_tokenizer
from strop.demo.sampling import best_by_reward, sampler_of
from strop.demo.task import RIGHT_SHARE, accuracy, pair_rows, prompt_of, sft_rows, spells_backward
from strop.demo.words import held_out_words, train_words
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

    def settings(self, name: str, batch: int, epochs: float, learning_rate: float) -> dict[str, Any]:
        """Settings that the three trainings share."""
        return {
            "output_dir": str(self.folder / name),
            "learning_rate": learning_rate,
            "lr_scheduler_type": "linear",
            "warmup_steps": 10,
            "num_train_epochs": epochs,
            "per_device_train_batch_size": batch,
            "per_device_eval_batch_size": 2 * batch,
            "max_length": None,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "report_to": "none",
            "seed": self.seed,
        }

    def accuracies(self, model: Any) -> tuple[float, float]:
        """Share of held-out words spelled right: greedily, and over 4 samples of each."""
        words = held_out_words(self.plan.held_out)
        greedy = accuracy(words, sampler_of(model, self.tokenizer, temperature=0.0))
        sampled = accuracy(words, sampler_of(model, self.tokenizer, seed=self.seed), n=4)
        return greedy, sampled

    def spelled(self, model: Any) -> list[str]:
        """Greedy completions of the words in the table of samples."""
        words = held_out_words(self.plan.shown)
        sample = sampler_of(model, self.tokenizer, temperature=0.0)
        return [group[0].strip() for group in sample([prompt_of(word) for word in words], 1)]


class Watch(TrainerCallback):
    """Every few steps: the accuracy on held-out words as a metric, and what the model writes for the shown words."""

    def __init__(self, demo: Demo) -> None:
        self.demo = demo
        self.trainer: SFTTrainer | DPOTrainer | RewardTrainer | None = None  # set once it exists

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        plan = self.demo.plan
        if state.global_step % plan.watch_every and state.global_step != 1:
            return
        assert self.trainer is not None
        prompts = [prompt_of(word) for word in held_out_words(plan.held_out)]
        sample = sampler_of(self.trainer.model, self.demo.tokenizer, temperature=0.0)
        texts = [group[0] for group in sample(prompts, 1)]
        right = [float(spells_backward(prompt, text)) for prompt, text in zip(prompts, texts, strict=True)]
        due = control.should_log
        self.trainer.log({"held_out_accuracy": sum(right) / len(right)})
        control.should_log = due  # logging clears it, and the step's own line may still be due
        rows = list(zip(prompts, texts, right, strict=True))[: plan.shown]
        shown = ({"prompt": p, "completion": c, "reward": r} for p, c, r in rows)
        self.trainer.run_directory.write_samples(state.global_step, shown)


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
    reward_model(demo, model, pairs, held_out_pairs)
    preference_optimisation(demo, pairs, held_out_pairs)
    demo.results["seconds"] = round(time.perf_counter() - start, 1)
    return finish(demo, fast)


def supervised(demo: Demo) -> Any:
    """Stage 1: learn from demonstrations of mixed quality."""
    plan = demo.plan
    title = f"1 SFT: {plan.demonstrations:,} demonstrations, {RIGHT_SHARE:.0%} of them right"
    with demo.stage("sft", title):
        args = SFTConfig(**demo.settings("sft", plan.sft_batch, 1, plan.sft_learning_rate), logging_steps=15)
        trainer = SFTTrainer(
            model=build_model(demo.tokenizer, demo.seed),
            args=args,
            train_dataset=sft_rows(plan.demonstrations, demo.seed),
            processing_class=demo.tokenizer,
        )
        trainer.train()
        trainer.save_model()
        demo.results["before"], demo.results["before_sampled"] = demo.accuracies(trainer.model)
        demo.results["spelled_before"] = demo.spelled(trainer.model)
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


def reward_model(demo: Demo, model: Any, pairs: list[dict[str, str]], held_out: list[dict[str, str]]) -> None:
    """Stage 3: learn to score completions; then pick the best of several samples by that score."""
    plan = demo.plan
    with demo.stage("reward", f"3 Reward model: {len(pairs)} pairs"):
        args = RewardConfig(
            **demo.settings("reward", plan.pair_batch, plan.reward_epochs, plan.reward_learning_rate), logging_steps=5
        )
        trainer = RewardTrainer(
            model=str(demo.folder / "sft"), args=args, train_dataset=pairs, eval_dataset=held_out,
            processing_class=demo.tokenizer,
        )  # fmt: skip
        trainer.train()
        trainer.save_model()
        demo.results["reward_accuracy"] = trainer.evaluate()["eval_accuracy"]
        words = held_out_words(plan.held_out)
        prompts = [prompt_of(word) for word in words]
        samples = sampler_of(model, demo.tokenizer, seed=demo.seed + 2)(prompts, plan.samples)
        with torch.no_grad():
            best = best_by_reward(trainer.model, demo.tokenizer, prompts, samples)
        right = sum(spells_backward(prompt, text) for prompt, text in zip(prompts, best, strict=True))
        demo.results["best_of_n"] = right / len(words)
        demo.console.print(
            f"{demo.results['reward_accuracy']:.1%} of held-out pairs ranked right; "
            f"the best of {plan.samples} samples by its score is right for {demo.results['best_of_n']:.1%} of words"
        )


def preference_optimisation(demo: Demo, pairs: list[dict[str, str]], held_out: list[dict[str, str]]) -> None:
    """Stage 4: DPO with the likelihood of the chosen completion beside it, which holds it up."""
    plan = demo.plan
    with demo.stage("dpo", f"4 DPO: the same {len(pairs)} pairs"):
        args = DPOConfig(
            **demo.settings("dpo", plan.pair_batch, plan.dpo_epochs, plan.dpo_learning_rate),
            logging_steps=5,
            loss_type=["sigmoid", "sft"],
            loss_weights=[1.0, 1.0],
            beta=0.1,
        )
        watch = Watch(demo)
        trainer = DPOTrainer(
            model=str(demo.folder / "sft"), args=args, train_dataset=pairs, eval_dataset=held_out,
            processing_class=demo.tokenizer, callbacks=[watch],
        )  # fmt: skip
        watch.trainer = trainer
        trainer.train()
        trainer.save_model()
        trainer.evaluate()
        demo.results["after"], demo.results["after_sampled"] = demo.accuracies(trainer.model)
        demo.results["spelled_after"] = demo.spelled(trainer.model)


def finish(demo: Demo, fast: bool) -> dict[str, Any]:
    """Print the result, write summary.json and report.html."""
    plan, found = demo.plan, demo.results
    accuracies = [
        ("after SFT", f"{found['before']:.1%}", f"{found['before_sampled']:.1%}"),
        (f"best of {plan.samples} samples by the reward model", "", f"{found['best_of_n']:.1%}"),
        ("after DPO", f"{found['after']:.1%}", f"{found['after_sampled']:.1%}"),
    ]
    words = held_out_words(plan.shown)
    spelled = list(zip(words, map(_marked, words, found["spelled_before"]),
                       map(_marked, words, found["spelled_after"]), strict=True))  # fmt: skip
    columns = {"accuracy": ("held-out words right", "greedy", "sampled"), "spelled": ("word", "after SFT", "after DPO")}
    summary = {
        "title": "Spell a word backward",
        "metric": f"held-out words spelled backward, greedy, of {plan.held_out}",
        "before": found["before"],
        "after": found["after"],
        "before_name": "after SFT",
        "after_name": "after DPO",
        "seconds": found["seconds"],
        "note": NOTE + (" This was the fast run, which teaches next to nothing." if fast else ""),
        "tables": [
            {"title": "Accuracy", "columns": columns["accuracy"], "rows": accuracies},
            {"title": "Held-out words", "columns": columns["spelled"], "rows": spelled},
        ],
        "seed": demo.seed,
        "fast": fast,
        "stage_seconds": {name: round(value, 1) for name, value in demo.seconds.items()},
        **{k: found[k] for k in ("before_sampled", "after_sampled", "best_of_n", "reward_accuracy", "pairs")},
    }
    text = json.dumps(summary, indent=1, ensure_ascii=False)
    (demo.folder / "summary.json").write_text(text + "\n", encoding="utf-8")
    page = write_report(demo.folder)
    demo.console.rule("[bold]Result", align="left")
    _print_table(demo.console, columns["accuracy"], accuracies)
    _print_table(demo.console, columns["spelled"], spelled)
    demo.console.print(f"{found['seconds']:.0f} s in all. Report: {page}", highlight=False, soft_wrap=True)
    return summary


def _marked(word: str, spelled: str) -> str:
    return f"{spelled} ✓" if spelled == word[::-1] else f"{spelled} ✗"


def _print_table(console: Console, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    console.print(table)
