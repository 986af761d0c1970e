"""Completions of a few evaluation prompts at every evaluation: `generate_during_eval`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from transformers import TrainerCallback

from strop.engine.rows import flatten
from strop.engine.trainer import BaseTrainer
from strop.online.groups import Group, prompt_of, sample_rows
from strop.records import Example
from strop.rollout import SamplingParams, make_generator
from strop.watch.samples import show_samples

PROMPTS = 4
MAX_NEW_TOKENS = 128


class EvaluationSamples(TrainerCallback):
    """After an evaluation: one completion of each of the first prompts, into samples.jsonl and the terminal.

    Drawn at temperature 1 with the run's seed, so that two evaluations differ by the weights alone.
    """

    def __init__(self, trainer: BaseTrainer) -> None:
        self.trainer = trainer
        self._generator: Any = None

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        count = PROMPTS if args.num_completions_to_print is None else args.num_completions_to_print
        groups = self.draw(list(islice(self.prompts(), count)), args.max_completion_length or MAX_NEW_TOKENS)
        if groups and state.is_world_process_zero:
            shown = self.write(groups)
            show_samples(shown, len(shown))

    def draw(self, examples: list[Example], max_new_tokens: int, **sampling: Any) -> list[Group]:
        """One completion of each prompt, by the policy as it is; the same draw of the run's seed every time."""
        if not examples:
            return []
        trainer, args = self.trainer, self.trainer.args
        params = SamplingParams(max_new_tokens, seed=args.seed, **sampling)
        with trainer.gathered():
            if self._generator is None:
                autocast = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
                self._generator = make_generator(
                    model=trainer.policy, tokenizer=trainer.processing_class, autocast=autocast
                )
            self._generator.sync(trainer.policy)
            drawn = self._generator.generate([example.prompt_ids for example in examples], 1, params)
        lists = zip(examples, drawn.completions, drawn.sampler_logps, drawn.finish_reasons, strict=True)
        return [Group(e, *parts, prompt=prompt_of(trainer.processing_class, e)) for e, *parts in lists]

    def write(self, groups: list[Group]) -> list[dict[str, Any]]:
        """Completions as rows of samples.jsonl."""
        shown = sample_rows(self.trainer.processing_class, groups)
        step = self.trainer.state.global_step
        self.trainer.run_directory.write_samples(step, ({**row, "evaluation": True} for row in shown))
        return shown

    def prompts(self) -> Iterator[Example]:
        """Evaluation rows that have a prompt, the first set's where there are several sets."""
        dataset = self.trainer.eval_dataset
        if isinstance(dataset, Mapping):
            dataset = next(iter(dataset.values()), None)
        if dataset is None:
            return
        found = (dataset[i] for i in range(len(dataset))) if hasattr(dataset, "__len__") else iter(dataset)
        yield from (example for item in found for example in flatten([item]) if example.prompt_ids)
