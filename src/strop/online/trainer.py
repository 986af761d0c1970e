"""What the online methods share: sample completions, reward them, make trees, and use them for one or more steps."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from transformers.trainer_utils import TrainOutput

from strop.agents.environments import Environments
from strop.agents.program import AgentTurns, make_agent_turns
from strop.agents.rollout_function import RolloutFunction
from strop.agents.set_up import check_prompts_are_conversations, environment_rows, make_turns, tool_schemas
from strop.agents.tools import Tools
from strop.agents.turns import Turns
from strop.data import DatasetKind, plan_micro_batches
from strop.engine import rows
from strop.engine.evaluation import EvaluationSums
from strop.engine.parts import Facts
from strop.engine.trainer import BaseTrainer
from strop.errors import RolloutError
from strop.model import base_model, lm_head_of
from strop.online.ahead import rounds_ahead, staleness
from strop.online.batches import BatchSizes, batch_sizes, rounding_notices, share_steps, split_steps
from strop.online.evaluation_samples import EvaluationSamples
from strop.online.groups import Group, completion_metrics, sample_rows
from strop.online.pieces import in_trajectories, pieces
from strop.online.rewarding import check_rewards, make_rewards, reward_groups, reward_source
from strop.online.sampled_distribution import changes_distribution, rescore
from strop.online.sampler_check import compare_sampler
from strop.online.sampling import Drawn, Load, make_engine, sample_groups, sampling_params
from strop.online.turn_settings import check_turn_settings
from strop.records import Batch, Counts, Example, Extreme, Mean, Sampled, Scores, Want
from strop.rollout import SamplingParams, default_stop_ids
from strop.rollout.limits import position_limit, vocab_size
from strop.settings.online import OnlineConfig
from strop.watch.samples import show_samples


class OnlineTrainer(BaseTrainer):
    """Rows are prompts. A window of prompts is sampled at once, becomes trees, and serves `sizes.steps` steps."""

    config_class = OnlineConfig
    dataset_kind = DatasetKind.PROMPT_ONLY
    evaluation_samples = EvaluationSamples
    remembers_reference = False
    needs_reward: ClassVar[bool] = True
    can_fork: ClassVar[bool] = False
    """Whether a trajectory may have several contexts, as where a chat template rewrites past turns."""
    batch_counts: ClassVar[Literal["completions", "prompts"]] = "completions"
    """What per_device_train_batch_size counts; prompts where methods make pairs."""

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
        given: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        environments = None
        if environment_factory is not None:
            isolated = getattr(args, "environment_isolation", False)
            environments = Environments(environment_factory, isolated=isolated)
            steps = max(getattr(args, "max_steps", 0), 0)
            train_dataset = environment_rows(train_dataset, steps, several=environments.several)
        source = reward_source(
            type(self).__name__, args, needed=self.needs_reward, environments=environments,
            reward_funcs=reward_funcs, reward_model=reward_model, judge=judge,
        )  # fmt: skip
        own = {
            "reward": source,
            "reward_tokenizers": reward_processing_classes,
            "tools": Tools(tools) if tools else None,
            "environments": environments,
            "rollout_func": RolloutFunction(rollout_func) if callable(rollout_func) else rollout_func,
        }
        super().__init__(
            model,
            args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            given={**own, **(given or {})},
            **kwargs,
        )

    @classmethod
    def facts(cls, args: Any, given: Mapping[str, Any]) -> Facts:
        options = rows.tokenize_options(
            args,
            filter_overlong=args.max_prompt_length is None,
            chat_template_kwargs=args.chat_template_kwargs,
            tools=tuple(tool_schemas(given.get("tools"), given.get("environments"))) or None,
        )
        betas = args.beta if isinstance(args.beta, (list, tuple)) else [args.beta]  # one for each epoch
        return replace(super().facts(args, given), uses_reference=max(betas) > 0, tokenize=options, samples=True)

    def after_init(self) -> None:
        check_turn_settings(self.args, self.given)
        self.buffer: deque[list[Example]] = deque()
        self.rounds = 0
        self._sampler_compared = False  # with the policy, at the first round
        self._environments, self._rollout_func = self.given["environments"], self.given["rollout_func"]
        if self._environments is not None:
            self._environments.seconds = self.args.tool_timeout
        self.rewards = None
        if (source := self.reward()) is not None:
            self.rewards = make_rewards(self.args, source, self.given["reward_tokenizers"], self.processing_class)
            check_rewards(
                type(self).__name__,
                self.rewards,
                self.train_dataset,
                self.model,
                alone=self.batch_counts == "completions" and self.group_size < 2,
                environments=self._environments is not None,
                own_rollouts=self._rollout_func is not None,
            )
        self._generator: Any = None
        self.ahead = rounds_ahead(self) if self.args.overlap else None
        self.evaluated: list[Group] = []  # of the window that is evaluated
        self.turns = self.make_turns() if self.turns_wanted else None
        for line in rounding_notices(self.args, self.sizes):
            self.say(line)

    def make_turns(self) -> Turns | AgentTurns | None:
        """Rollouts of several turns, with the tools and environments, or by the agent, that were given."""
        tools, own, tokenizer = self.given["tools"], self._rollout_func, self.processing_class
        if isinstance(own, RolloutFunction):
            return None
        given: dict[str, Any] = {
            "past": self.args.past_turns, "can_fork": self.can_fork, "positions": position_limit(self.policy),
            "stop_ids": default_stop_ids(self.policy, self.processing_class), "say": self.say,
            "tools": tools, "environments": self._environments,
        }  # fmt: skip
        if self.ahead is not None:
            tokenizer = copy.deepcopy(tokenizer)  # conversations are rendered while rows are tokenised
            if tools is not None:
                tools.apart = True
        if own is not None:
            return make_agent_turns(own, tokenizer, self.rows.options, **given)
        check_prompts_are_conversations(self.train_dataset, tools, self._environments)
        limits = {"rounds": self.args.max_tool_calling_iterations, "seconds": self.args.tool_timeout}
        return make_turns(tokenizer, self.rows.options, at_once=self.args.tools_at_once, **limits, **given)

    def reward(self) -> Any:
        """What completions are rewarded by: as it was given."""
        return self.given["reward"]

    @property
    def reward_funcs(self) -> list[Any]:
        """The rewards that are asked, in their order."""
        return [] if self.rewards is None else list(self.rewards.functions)

    @property
    def reward_func_names(self) -> list[str]:
        """Their names in metrics."""
        return [] if self.rewards is None else list(self.rewards.names)

    @property
    def reward_weights(self) -> Any:
        """Their weights, in the same order, (rewards,)."""
        return None if self.rewards is None else self.rewards.weights

    @property
    def reward_processing_classes(self) -> list[Any]:
        """The tokenizers of those that are models, None for the others."""
        return [getattr(reward, "tokenizer", None) for reward in self.reward_funcs]

    @property
    def turns_wanted(self) -> bool:
        """Whether completions are more than one turn of the model, or come from the user's own function."""
        return any(self.given[name] is not None for name in ("tools", "environments", "rollout_func"))

    def want(self, log: bool) -> Want:
        return Want.LOGPS | Want.ENTROPY if log else Want.LOGPS

    # ---- how many prompts make a step -------------------------------------------------------------------------

    @property
    def group_size(self) -> int:
        """Completions sampled per prompt in training."""
        return self.args.num_generations

    @property
    def sizes(self) -> BatchSizes:
        """What the batch settings come to."""
        return batch_sizes(self.args, self.rows_per_step, self.group_size, self.batch_counts)

    def window_size(self) -> tuple[int, int]:
        return self.sizes.prompts_of_a_round, self.sizes.steps

    @property
    def shuffles(self) -> bool:
        return self.args.shuffle_dataset and super().shuffles

    # ---- sampling and scoring ---------------------------------------------------------------------------------

    @property
    def generator(self) -> Any:
        """The rollout engine, made on first use."""
        if self._generator is None:
            with self.gathered():
                reference = self.reference if self.samples_reference else None
                self._generator = make_engine(self.args, self.policy, self.processing_class, reference)
        return self._generator

    @property
    def sampled_model(self) -> Any:
        """The model that completions are sampled from."""
        return self.policy

    def speaker(self, moment: int) -> AbstractContextManager[bool]:
        """Within this context engine and `sampled_model` are those of the round `moment`; whether it is sampled."""
        return nullcontext(True)

    def sampling(self, training: bool, moment: int | None = None) -> SamplingParams:
        """Sampling settings of the next round; a resumed run draws what the stopped one would have drawn."""
        if moment is None:
            moment = self.rounds if training else 2**31 + self.state.global_step
        return sampling_params(self.args, moment=moment)

    def drawing(self, prompts: Sequence[Example], n: int, params: SamplingParams, load: Load) -> Callable[[], Drawn]:
        """What samples `n` completions of each prompt, at once, or, where rounds are sampled ahead, in another thread.

        Ranks without prompts take part too: bringing a shared server up to date, by `load`, is a meeting of all, and
        so is every pass over a policy in shards.
        """
        engine, told = (self.generator, self) if self.ahead is None else self.ahead.meanwhile()
        own = self._rollout_func
        by_function = isinstance(own, RolloutFunction)
        function = partial(own, trainer=told, vocabulary=vocab_size(self.policy)) if by_function else None

        def draw() -> Drawn:
            load()
            if self.ahead is not None and prompts:
                self.ahead.lend(engine)
            return sample_groups(
                engine, self.processing_class, prompts, n, params, turns=self.turns, rollout_func=function
            )

        return draw

    def rollout(self, prompts: Sequence[Example], n: int, training: bool) -> list[Group]:
        with self.clock.part("sampling"), self.gathered():
            engine, policy = self.generator, self.sampled_model
            load = partial(engine.sync, policy) if self.ahead is None else engine.stage(policy)
            draw = self.drawing(prompts, n, self.sampling(training), load)
            groups, metrics = draw() if self.ahead is None else self.ahead.sampling(draw).result()
        self._metrics["train" if training else "eval"].add(metrics)
        if training and groups:
            self.compare_sampler(groups)
        return groups

    def compare_sampler(self, groups: list[Group]) -> None:
        """Once, and of the policy's own samples: what the engine says of them beside what the policy says."""
        if not self._sampler_compared and self.sampled_model is self.policy:
            self._sampler_compared = True
            compare_sampler(self, groups)

    def score_groups(self, groups: list[Group], mode: str) -> None:
        """Rewards of every completion, written into its group; metrics of rewards are recorded."""
        if self.rewards is None or not groups or groups[0].values is not None:  # asked ahead, where they are there
            return
        ask = partial(self.ask, groups, self.state)
        with self.clock.part("rewards"):
            metrics = ask() if self.ahead is None else self.ahead.rewarding(ask).result()
        self._metrics[mode].add(metrics)

    def ask(self, groups: list[Group], state: Any) -> dict[str, Mean | Extreme]:
        """Ask the rewards, in the thread of the rewards where rounds are made ahead."""
        penalty = self.args.missing_eos_penalty
        return reward_groups(groups, self.rewards, self.processing_class, state=state, missing_eos_penalty=penalty)

    def plan(self, examples: Sequence[Example], rows_at_once: int) -> list[list[Example]]:
        """A micro-batch has as many completions as `rows_at_once` says, however many of them a tree has."""
        units = in_trajectories(examples)
        each = 1 if self.batch_counts == "prompts" else max((len(e.completions) for e in examples), default=1)
        each = max([each, *map(len, units)])
        if len(units) == len(examples):
            return super().plan(examples, max(1, rows_at_once // each))
        budget = self.args.max_tokens_per_micro_batch
        parts = plan_micro_batches(units, max_tokens=budget, max_trees=None if budget else max(1, rows_at_once // each))
        return [[example for i in part for example in units[i]] for part in parts]

    def counts(self, examples: Sequence[Example]) -> Counts:
        """As for other rows; the stretches of a trajectory are one completion."""
        counts = super().counts(examples)
        later = sum(len(e.completions) for e in examples if e.sampled is not None and e.sampled.follows)
        return {**counts, "completions": counts["completions"] - later}

    def pieces(self, tree: Example) -> list[Example]:
        """A tree with more completions than a micro-batch may hold, cut to fit."""
        budget = self.args.max_tokens_per_micro_batch
        return pieces(tree, max_tokens=budget, max_completions=None if budget else self.args.train_batch_size)

    def make_trees(self, groups: list[Group], training: bool) -> list[Example]:
        """Trees to train on, in the order of the groups: what a method makes of its rewarded completions."""
        raise TypeError(f"{type(self).__name__} must define make_trees(groups, training) -> list[Example]")

    def prepare_step(self, examples: list[Example]) -> list[Example]:
        """Rows of the next optimizer step, from the buffer; where it is empty, a round is sampled from `examples`."""
        if not self.buffer:
            self.fill_buffer(examples)
        elif examples:
            steps = f"{len(self.buffer)} optimizer step{'s' if len(self.buffer) > 1 else ''}"
            raise RolloutError(
                f"{len(examples)} prompts came while completions for {steps} wait to be learned from. Give prompts "
                "when the buffer is empty, and no rows ([]) in between."
            )
        trees = self.buffer.popleft()
        self._metrics["train"].add(staleness(trees, self.state.global_step))
        return trees

    def fill_buffer(self, prompts: list[Example]) -> None:
        """Sample, score and shape one round, and cut it into the steps that it serves."""
        if self.ahead is not None:
            groups = self.ahead.take(prompts)
        else:
            with self.speaker(self.rounds) as samples:
                groups = self.rollout(prompts, self.group_size, True) if samples else []
        trees = self.learnable(groups, prompts)
        self.rounds += 1
        steps = split_steps(trees, self.sizes, rank=self.args.process_index, world_size=self.args.world_size)
        if self.sizes.steps > 1:
            self.fix_old_logps(steps)
        for _ in range(self.args.num_iterations):
            self.buffer.extend([list(step) for step in steps])

    def learnable(self, groups: list[Group], prompts: list[Example]) -> list[Example]:
        """Groups sampled for `prompts` as trees to learn from, rewarded, counted and noted."""
        self.score_groups(groups, "train")
        asked = [group for group in groups if group.place is None]  # not those that were drawn for what these lack
        self._metrics["train"].add(completion_metrics(asked))
        trees = self.make_trees(groups, training=True)
        self.remember_samples(asked)
        return trees

    def trees_of(self, group: Group, known: Sampled, keep: Sequence[int] | None = None) -> list[Example]:
        """Completions of a group as trees, with what is `known`; trajectories are numbered over all ranks."""
        first = (known.place * self.args.world_size + self.args.process_index) * len(group.completions)
        return group.trees(known, keep, drop_truncated=self.args.mask_truncated_completions, first=first)

    def fix_old_logps(self, steps: list[list[Example]]) -> None:
        """Remember the policy's log-probs at the start of the window, which later steps compare with."""

    def prepare_evaluation(self, examples: list[Example]) -> list[Example]:
        groups = self.rollout(examples, self.args.num_generations_eval or self.group_size, training=False)
        self.score_groups(groups, "eval")
        self.evaluated = groups if self.rewards is not None else []
        self._metrics["eval"].add(completion_metrics(groups))
        return self.make_trees(groups, training=False)

    def evaluate_window(self, examples: list[Example], sums: EvaluationSums) -> None:
        super().evaluate_window(examples, sums)
        groups, self.evaluated = self.evaluated, []
        if sums.predicts and groups:  # all prompts, those too whose completions make no pair
            sums.keep([group.example for group in groups], torch.stack([group.rewards for group in groups]))

    def predictions(self, scores: Scores, batch: Batch) -> torch.Tensor | None:
        """Where completions are rewarded: their rewards, (B, G), not a number where a reward abstained."""
        return None if self.evaluated else super().predictions(scores, batch)

    def prepare_stand_in(self, example: Example) -> Example:
        ids = example.prompt_ids or [0]
        return Example(ids, [ids[:1]], extras=example.extras)

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
        self.run_directory.write_samples(self.state.global_step, shown)
        if self.args.log_completions:
            count = self.args.num_completions_to_print
            show_samples(shown, 4 if count is None else count, unique_prompts=self.args.log_unique_prompts)

    def extra_state(self) -> dict[str, Any]:
        buffer = [[tree.to_plain() for tree in step] for step in self.buffer]
        ahead = [] if self.ahead is None else self.ahead.state()
        return {**super().extra_state(), "rounds": self.rounds, "buffer": buffer, "ahead": ahead}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self.rounds = state["rounds"]
        self.buffer = deque([Example.from_plain(tree) for tree in step] for step in state["buffer"])
        if self.args.ignore_data_skip:  # the epoch begins again, and its first prompts with it
            self.buffer.clear()
        if self.ahead is not None:
            self.ahead.load(state["ahead"])

    def train_from(self, folder: Path | None, **kwargs: Any) -> TrainOutput:
        self.buffer.clear()  # what an earlier training left; a checkpoint's is loaded within
        try:
            with nullcontext() if self.ahead is None else self.ahead.learning():
                return super().train_from(folder, **kwargs)
        finally:
            if self.ahead is not None:
                self.ahead.clear()
            if self._environments is not None:
                self._environments.close()  # a later evaluation makes them anew

    def share_extra_state(self, states: list[dict[str, Any]]) -> dict[str, Any]:
        rank, world = self.args.process_index, self.args.world_size
        buffer = share_steps([state["buffer"] for state in states], rank=rank, world_size=world)
        return {
            **super().share_extra_state(states),
            "rounds": max(state["rounds"] for state in states),
            "buffer": buffer,
            "ahead": [],  # ranks sample with seeds of their own: what was sampled ahead is sampled again
        }

    def row_order(self) -> dict[str, Any]:
        return {
            **super().row_order(),
            "prompts of a step": self.sizes.prompts,
            "steps of a round of sampling": self.sizes.steps,
        }
