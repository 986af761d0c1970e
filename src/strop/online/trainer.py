"""What the online methods share: sample completions, reward them, make trees, and use them for one or more steps."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from strop.data import DatasetKind, TokenizeOptions
from strop.engine import rows
from strop.engine.trainer import BaseTrainer
from strop.engine.windows import StepSampler, StreamWindows, window_loader, worker_options
from strop.errors import ConfigError
from strop.model import base_model, lm_head_of
from strop.online.evaluation_samples import EvaluationSamples
from strop.online.groups import (
    Group,
    completion_metrics,
    environment_reward,
    prompt_of,
    replies,
    sample_rows,
)
from strop.online.pieces import pieces
from strop.online.sampled_distribution import changes_distribution, rescore
from strop.records import Batch, Counts, Example, Mean, Rollout, Scores, Want
from strop.rewards import JudgeReward, RewardSet
from strop.rollout import SamplingParams, make_generator
from strop.rollout.tools import Tools
from strop.rollout.turns import Turns, check_rollout
from strop.settings.online import OnlineConfig
from strop.watch.samples import show_samples


class OnlineTrainer(BaseTrainer):
    """Rows are prompts. A window of prompts is sampled at once, becomes trees, and serves `steps_per_window` steps."""

    config_class = OnlineConfig
    dataset_kind = DatasetKind.PROMPT_ONLY
    evaluation_samples = EvaluationSamples
    remembers_reference = False
    needs_reward: ClassVar[bool] = True
    batch_counts: ClassVar[str] = "completions"  # what per_device_train_batch_size counts; "prompts" for pairs

    def __init__(
        self,
        model: Any = None,
        reward_funcs: Any = None,
        args: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        reward_model: Any = None,
        judge: Any = None,
        tools: Any = None,
        environment_factory: Any = None,
        rollout_func: Any = None,
        **kwargs: Any,
    ) -> None:
        given = [value for value in (reward_funcs, reward_model, judge) if value is not None]
        if not given and getattr(args, "reward_model_path", None) is not None:
            given = [args.reward_model_path]
        if len(given) > 1:
            raise ConfigError(
                "reward_funcs, reward_model and judge are names for one thing; give one of them (a list is fine)."
            )
        if not given and environment_factory is not None:
            given = [environment_reward]
        if self.needs_reward and not given:
            raise ConfigError(
                f"{type(self).__name__} needs a reward: pass reward_funcs=, a function, a model, an id, a judge, or "
                f"a list of them."
            )
        self._reward_source = (given[0] if given else None, reward_processing_classes)
        self._tools = Tools(tools) if tools else None
        self._environment_factory, self._rollout_func = environment_factory, rollout_func
        self.buffer: deque[list[Example]] = deque()
        self.rounds = 0
        super().__init__(
            model,
            args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )

    def after_init(self) -> None:
        source, tokenizers = self._reward_source
        self.rewards = None
        if source is not None:
            self.rewards = RewardSet(
                source,
                weights=self.args.reward_weights,
                processing_classes=tokenizers,
                on_error=self.args.reward_on_error,
                penalty=self.args.reward_penalty,
                timeout_seconds=self.args.reward_timeout,
                device=self.args.device,
            )
            self.check_rewards()
        self._generator: Any = None
        self.turns = None
        if self._tools is not None or self._environment_factory is not None:
            self.turns = Turns(
                self.processing_class,
                tools=self._tools,
                environment_factory=self._environment_factory,
                max_turns=self.args.max_tool_calling_iterations or 8,
                template_kwargs=self.args.chat_template_kwargs,
            )
        self.announce_batches()

    @property
    def turns_wanted(self) -> bool:
        """Whether completions are more than one turn of the model, or come from the user's own function."""
        return any(given is not None for given in (self._tools, self._environment_factory, self._rollout_func))

    def check_rewards(self) -> None:
        """Whether the rewards find what they ask for, before anything is sampled."""
        assert self.rewards is not None
        if (
            self.batch_counts == "completions"
            and self.group_size < 2
            and any(isinstance(reward, JudgeReward) for reward in self.rewards.functions)
        ):
            raise ConfigError(
                f"A judge compares completions of one prompt, and {type(self).__name__} samples one; "
                "set num_generations to 2 or more, or give a reward that scores a single completion."
            )
        if hasattr(self.train_dataset, "__len__") and len(self.train_dataset):
            columns = list(self.train_dataset[0].extras.get("columns", {}))
            self.rewards.check_columns(columns, has_environments=self._environment_factory is not None)

    @property
    def uses_reference(self) -> bool:  # type: ignore[override]
        return self.args.beta > 0

    def want(self, log: bool) -> Want:
        return Want.LOGPS | Want.ENTROPY if log else Want.LOGPS

    # ---- how many prompts make a step -------------------------------------------------------------------------

    @property
    def group_size(self) -> int:
        """Completions sampled per prompt in training."""
        return self.args.num_generations

    @property
    def completions_per_step(self) -> int:
        """Completions that one optimizer step asks for, over all ranks."""
        return self.rows_per_step * (self.group_size if self.batch_counts == "prompts" else 1)

    @property
    def prompts_per_step(self) -> int:
        """Whole groups that make an optimizer step: the completions asked for, rounded up."""
        return (
            self.rows_per_step
            if self.batch_counts == "prompts"
            else math.ceil(self.completions_per_step / self.group_size)
        )

    @property
    def fresh_steps(self) -> int:
        """Optimizer steps with new completions that one round of sampling serves."""
        accumulation = self.args.gradient_accumulation_steps
        if self.args.generation_batch_size is not None:
            return max(1, round(self.args.generation_batch_size / self.completions_per_step))
        return max(1, round((self.args.steps_per_generation or accumulation) / accumulation))

    @property
    def steps_per_window(self) -> int:
        """Optimizer steps from one round of sampling to the next."""
        return self.fresh_steps * self.args.num_iterations

    def announce_batches(self) -> None:
        """Say so if the batch settings do not make whole groups, and what is done instead."""
        if self.completions_per_step % self.group_size:
            self.say(
                f"{self.completions_per_step} completions per step make no whole groups of {self.group_size}; "
                f"prompts used "
                f"for each step: {self.prompts_per_step}, with {self.prompts_per_step * self.group_size} completions. "
                "Micro-batches stay at per_device_train_batch_size."
            )

    def get_train_dataloader(self) -> Any:
        if self.train_dataset is None:
            raise rows.missing_dataset(type(self).__name__)
        window = self.prompts_per_step * self.fresh_steps
        batches = self.args.gradient_accumulation_steps * self.steps_per_window
        where = {"rank": self.args.process_index, "world_size": self.args.world_size}
        if not hasattr(self.train_dataset, "__len__"):
            stream = StreamWindows(self.train_dataset, window, batches_per_step=batches, repeat=True, **where)
            return window_loader(stream, None, num_workers=self.args.dataloader_num_workers)
        sampler = StepSampler(
            len(self.train_dataset),
            window,
            batches_per_step=batches,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            shuffle=self.args.shuffle_dataset and self.shuffles,
            drop_last=self.args.dataloader_drop_last,
            **where,
        )
        return window_loader(self.train_dataset, sampler, **worker_options(self.args))

    # ---- sampling and scoring ---------------------------------------------------------------------------------

    def tokenize_options(self) -> TokenizeOptions:
        limit = self.args.max_prompt_length
        tools = tuple(self._tools.schemas) if self._tools is not None else None
        return rows.tokenize_options(
            self.args, filter_overlong=limit is None, chat_template_kwargs=self.args.chat_template_kwargs, tools=tools
        )

    @property
    def generator(self) -> Any:
        """The rollout engine, made on first use."""
        if self._generator is None:
            self._generator = make_generator(
                self.args.engine,
                model=self.policy,
                tokenizer=self.processing_class,
                max_slots=self.args.max_slots,
                autocast=torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else None,
                **self.args.vllm_settings(),
            )
        return self._generator

    @property
    def sampled_model(self) -> Any:
        """The model that completions are sampled from."""
        return self.policy

    def sampling(self, training: bool, player: int = 0) -> SamplingParams:
        """Sampling settings of the next round; the seed follows from run seed, round, rank and player, also after
        a resume."""
        moment = self.rounds if training else 2**31 + self.state.global_step
        seed = ((self.args.seed * 1_000_003 + moment) * 4099 + self.args.process_index) * 2 + player
        return SamplingParams(
            max_new_tokens=self.args.max_completion_length or 512,
            temperature=self.args.temperature,
            top_p=self.args.top_p,
            top_k=self.args.top_k,
            min_p=self.args.min_p,
            repetition_penalty=self.args.repetition_penalty,
            stop_token_ids=self.args.stop_token_ids,
            stop_strings=tuple(self.args.stop or ()),
            seed=seed % (2**31 - 1),
        )

    def rollout(self, prompts: Sequence[Example], n: int, training: bool) -> list[Group]:
        """Sample `n` completions for each prompt."""
        self.generator.sync(
            self.sampled_model
        )  # a meeting of the ranks where they share a server, those without prompts too
        if not prompts:
            return []
        sampled, trajectories = self.sample(prompts, n, training)
        return [
            Group(
                prompt,
                sampled.completions[i],
                sampled.sampler_logps[i],
                sampled.finish_reasons[i],
                sampled.loss_mask[i] if sampled.loss_mask is not None else None,
                prompt_of(self.processing_class, prompt),
                environments=[t.environment for t in trajectories[i]] if trajectories else None,
            )
            for i, prompt in enumerate(prompts)
        ]

    def sample(self, prompts: Sequence[Example], n: int, training: bool) -> tuple[Rollout, Any]:
        """Completions of the engine, of the user's `rollout_func`, or of several turns with tools or an environment."""
        ids, sampling = [prompt.prompt_ids for prompt in prompts], self.sampling(training)
        if self._rollout_func is not None:
            return check_rollout(self._rollout_func(ids, n, sampling, self), ids, n), None
        if self.turns is None:
            return self.generator.generate(ids, n, sampling), None
        columns = [{"prompt": p.extras.get("prompt"), **p.extras.get("columns", {})} for p in prompts]
        sampled, trajectories = self.turns.run(self.generator, ids, columns, n, sampling)
        everyone = [t for group in trajectories for t in group]
        calls, failures = sum(t.calls for t in everyone), sum(t.failures for t in everyone)
        frequency = {"tools/call_frequency": Mean(float(calls), float(len(everyone)))}
        failed = {"tools/failure_frequency": Mean(float(failures), float(calls))}
        self._metrics["train" if training else "eval"].add({**frequency, **failed} if self._tools is not None else {})
        return sampled, trajectories

    def score_groups(self, groups: list[Group], mode: str) -> None:
        """Rewards of every completion, written into its group; metrics of rewards and lengths are recorded."""
        if self.rewards is None or not groups:
            return
        flat = [(group, i) for group in groups for i in range(len(group.completions))]
        columns: dict[str, list[Any]] = {}
        for name in dict.fromkeys(name for group in groups for name in group.columns):
            columns[name] = [group.columns.get(name) for group, _ in flat]
        table = self.rewards.score(
            [group.prompt for group, _ in flat],
            [text for group in groups for text in replies(self.processing_class, group)],
            [group.completions[i] for group, i in flat],
            columns,
            trainer_state=self.state,
            environments=[e for group in groups for e in group.environments or []] or None,
        )
        values = torch.from_numpy(table.values).T.contiguous()  # (completions, rewards)
        totals = torch.from_numpy(table.total())  # (completions,)
        if self.args.missing_eos_penalty:
            ended = torch.tensor([group.finish_reasons[i] == "stop" for group, i in flat])
            totals = totals - self.args.missing_eos_penalty * (~ended).double()
        start = 0
        for group in groups:
            stop = start + len(group.completions)
            group.reward_names, group.values, group.rewards = table.names, values[start:stop], totals[start:stop]
            start = stop
        self._metrics[mode].add(table.log_metrics())

    def plan(self, examples: Sequence[Example], rows_at_once: int) -> list[list[Example]]:
        """A micro-batch has as many completions as `rows_at_once` says, however many of them a tree has."""
        each = 1 if self.batch_counts == "prompts" else max((len(e.completions) for e in examples), default=1)
        return super().plan(examples, max(1, rows_at_once // each))

    def counts(self, examples: Sequence[Example]) -> Counts:
        """As for other rows; a prompt that several pieces of a tree share counts once."""
        tokens = sum(e.num_tokens - len(e.prompt_ids) * e.extras.get("continues", False) for e in examples)
        return {**super().counts(examples), "num_tokens": float(tokens)}

    def pieces(self, tree: Example) -> list[Example]:
        """A tree with more completions than a micro-batch may hold, cut to fit."""
        budget = self.args.max_tokens_per_micro_batch
        return pieces(tree, max_tokens=budget, max_completions=None if budget else self._train_batch_size)

    def make_trees(self, groups: list[Group], training: bool) -> list[Example]:
        """Trees to train on, in the order of the groups: what a method makes of its rewarded completions."""
        raise TypeError(f"{type(self).__name__} must define make_trees(groups, training) -> list[Example]")

    def prepare_step(self, examples: list[Example]) -> list[Example]:
        """Rows of the next optimizer step, from the buffer; a new round of sampling where the buffer is empty."""
        if not self.buffer:
            self.fill_buffer(examples)
        return self.buffer.popleft()

    def fill_buffer(self, prompts: list[Example]) -> None:
        """Sample, score and shape one round, and cut it into the steps that it serves."""
        groups = self.rollout(prompts, self.group_size, training=True)
        self.score_groups(groups, "train")
        self._metrics["train"].add(completion_metrics(groups))
        trees = self.make_trees(groups, training=True)
        self.rounds += 1
        self.remember_samples(groups)
        steps = self.split_steps(trees)
        if self.steps_per_window > 1:
            self.fix_old_logps(steps)
        for _ in range(self.args.num_iterations):
            self.buffer.extend([list(step) for step in steps])

    def split_steps(self, trees: list[Example]) -> list[list[Example]]:
        """The trees of a round by the optimizer step that uses them; a step's prompts do not depend on the ranks.

        A tree belongs to the prompt `extras["prompt_index"]` of this rank's share (default: its own position).
        """
        steps: list[list[Example]] = [[] for _ in range(self.fresh_steps)]
        for index, tree in enumerate(trees):
            position = tree.extras.pop("prompt_index", index) * self.args.world_size + self.args.process_index
            steps[min(position // self.prompts_per_step, self.fresh_steps - 1)].append(tree)
        return steps

    def fix_old_logps(self, steps: list[list[Example]]) -> None:
        """Remember the policy's log-probs at the start of the window, which later steps compare with."""

    def prepare_evaluation(self, examples: list[Example]) -> list[Example]:
        groups = self.rollout(examples, self.args.num_generations_eval or self.group_size, training=False)
        self.score_groups(groups, "eval")
        self._metrics["eval"].add(completion_metrics(groups))
        return self.make_trees(groups, training=False)

    def prepare_stand_in(self, example: Example) -> Example:
        ids = example.prompt_ids or [0]
        return Example(ids, [ids[:1]], extras={**example.extras, "stand_in": True})

    def score_options(self) -> dict[str, Any]:
        return {**super().score_options(), "temperature": self.args.temperature}

    def score_with(self, model: torch.nn.Module, batch: Batch, want: Want, **options: Any) -> Scores:
        """Log-probs under the distribution that is sampled from."""
        params = self.sampling(training=True)
        if not changes_distribution(params) or not want & Want.LOGPS:
            return super().score_with(model, batch, want, **options)
        scores = super().score_with(model, batch, want | Want.HIDDEN, **options)
        return rescore(scores, lm_head_of(base_model(model)), batch, params, head_bytes=self.head_bytes)

    # ---- what a run keeps -------------------------------------------------------------------------------------

    def remember_samples(self, groups: list[Group]) -> None:
        """samples.jsonl, and the table in the terminal, on steps that are logged."""
        if not self.logs_next_step or not groups or not self.is_world_process_zero():
            return
        shown = sample_rows(self.processing_class, groups)
        self.run_directory.write_samples(shown)
        if self.args.log_completions:
            count = self.args.num_completions_to_print
            show_samples(shown, 4 if count is None else count, unique_prompts=self.args.log_unique_prompts)

    def extra_state(self) -> dict[str, Any]:
        buffer = [[tree.to_plain() for tree in step] for step in self.buffer]
        return {**super().extra_state(), "rounds": self.rounds, "buffer": buffer}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self.rounds = state["rounds"]
        self.buffer = deque([Example.from_plain(tree) for tree in step] for step in state["buffer"])

    def share_extra_state(self, states: list[dict[str, Any]]) -> dict[str, Any]:
        shares = zip(*(state["buffer"] for state in states), strict=True)  # step by step, a share of every rank
        rank, world = self.args.process_index, self.args.world_size
        buffer = [[tree for share in step for tree in share][rank::world] for step in shares]
        return {
            **super().share_extra_state(states),
            "rounds": max(state["rounds"] for state in states),
            "buffer": buffer,
        }

    def row_order(self) -> dict[str, Any]:
        order = super().row_order()
        order["shuffled"] = self.args.shuffle_dataset and self.shuffles
        return {
            **order,
            "prompts of a step": self.prompts_per_step,
            "steps of a round of sampling": self.steps_per_window,
        }
