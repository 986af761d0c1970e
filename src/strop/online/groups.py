"""A prompt and the completions sampled for it, with what is known about each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from strop.collectives import gather_tensors
from strop.errors import RolloutError
from strop.records import NOT_ASKED, Example, Extreme, Mean, Sampled, Stretch


@dataclass
class Group:
    """One prompt's completions of one round of sampling."""

    example: Example  # the prompt's row
    completions: list[list[int]]  # G lists of ids
    sampler_logps: list[list[float]]  # like completions
    finish_reasons: list[str]  # "stop" or "length"
    loss_mask: list[list[int]] | None = None  # 0 where the model did not write the token
    prompt: Any = None  # text or messages, for rewards and people only
    reward_names: list[str] = field(default_factory=list)
    values: torch.Tensor = NOT_ASKED  # (G, rewards) NaN where a reward abstained
    rewards: torch.Tensor = NOT_ASKED  # (G,) weighted totals, NaN where all abstained
    shaped: torch.Tensor = NOT_ASKED  # (G,) what advantages are made of, where it is not the rewards (RLOO)
    advantages: torch.Tensor | None = None  # (G,) where the method has one per completion
    turn_rewards: list[list[float]] | None = None  # G lists, one entry per turn of the model, part of the totals
    turn_advantages: list[list[float]] | None = None  # like turn_rewards, where each turn has its own
    notes: dict[str, list[Any]] = field(default_factory=dict)  # what rewards noted (log_extra), G values by name
    environments: list[Any] | None = None  # G live environment objects, where the rollout had them
    prompts: list[Any] | None = None  # G prompts, where each completion has its own (an observation is part of it)
    replies: list[list[dict[str, Any]]] | None = None  # G conversations, as messages, where there were several turns
    turn_tokens: list[list[int]] | None = None  # G lists, tokens of each of those messages
    stretches: list[list[Stretch] | None] | None = None  # G; of a completion that does not lie on the group's prompt
    extra: dict[str, list[Any]] = field(default_factory=dict)  # what a rollout function said of each, G values by name
    version: int | None = None  # optimizer steps that the weights had seen which wrote it, where it was made ahead
    own: int | None = None  # completions that the policy wrote, the first ones, where an opponent wrote the others
    place: int | None = None  # of its row in the training set, where it replaces another (dynamic_sampling)

    @property
    def columns(self) -> dict[str, Any]:
        """The row's other columns, for reward functions."""
        return self.example.extras.get("columns", {})

    @property
    def question(self) -> Any:
        """The prompt as rewards read it: without the begun answer that the completions go on with."""
        return without_begun_answer(self.prompt)

    @property
    def comparable(self) -> list[int]:
        """Indices of the completions that lie on the group's own prompt."""
        apart = self.stretches or [None] * len(self.completions)
        return [index for index, parts in enumerate(apart) if parts is None]

    def tree(
        self, keep: Sequence[int] | None = None, *, drop_truncated: bool = False, sampled: Sampled = NOT_ASKED
    ) -> Example:
        """The prompt with the completions of the indices `keep` (all by default), and their masks."""
        keep = range(len(self.completions)) if keep is None else keep
        if self.stretches is not None and any(self.stretches[i] is not None for i in keep):
            raise RolloutError(
                "This method compares completions of one prompt, and an environment gave two completions different "
                "ones (reset() returned different observations), or the chat template rewrites past turns. Make "
                "reset() depend on the row alone, or use GRPO, RLOO or PPO."
            )
        masks = self.masks(drop_truncated)
        return Example(
            self.example.prompt_ids,
            [self.completions[i] for i in keep],
            None if masks is None else [masks[i] for i in keep],
            row=self.example.row,
            sampled=sampled,
        )

    def trees(
        self, known: Sampled, keep: Sequence[int] | None = None, *, drop_truncated: bool = False, first: int = 0
    ) -> list[Example]:
        """The prompt with the completions of the indices `keep`; those that lie on contexts of their own come as trees
        of their own, one per stretch.

        `known` is about the completions of `keep`; `first` is the number of the group's first trajectory.
        """
        keep = list(range(len(self.completions)) if keep is None else keep)
        known = replace(known, of=keep)
        apart = [] if self.stretches is None else [place for place, i in enumerate(keep) if self.stretches[i]]
        together = [place for place in range(len(keep)) if place not in apart]
        trees = []
        if together:
            part = known.pick(together) if apart else known
            trees.append(self.tree([keep[p] for p in together], drop_truncated=drop_truncated, sampled=part))
        for place in apart:
            index = keep[place]
            lost = drop_truncated and self.finish_reasons[index] != "stop"
            begin = 0
            for number, stretch in enumerate(self.stretches[index] or []):  # type: ignore[index]
                own = replace(known.pick([place]), trajectory=first + index, follows=number > 0)
                own = own.cut(slice(begin, begin := begin + len(stretch.ids)))
                mask = [0] * len(stretch.mask) if lost else list(stretch.mask)
                trees.append(Example(stretch.prompt_ids, [stretch.ids], [mask], row=self.example.row, sampled=own))
        return trees

    def prompt_at(self, index: int) -> Any:
        """The prompt of a completion as rewards read it, with the observation that an environment began with."""
        return self.question if self.prompts is None else without_begun_answer(self.prompts[index])

    def masks(self, drop_truncated: bool = False) -> list[list[int]] | None:
        """Loss masks of the completions; None where every token counts."""
        cut = [drop_truncated and reason != "stop" for reason in self.finish_reasons]
        if self.loss_mask is None and not any(cut):
            return None
        masks = self.loss_mask or [[1] * len(ids) for ids in self.completions]
        return [[0] * len(mask) if drop else mask for mask, drop in zip(masks, cut, strict=True)]


def without_begun_answer(prompt: Any) -> Any:
    return prompt if begun_answer(prompt) is None else prompt[:-1]


def prompt_of(tokenizer: Any, example: Example) -> Any:
    """A row's prompt as it was given, text or messages; of a row of ids, their text without the BOS that
    tokenizers add."""
    if (given := example.extras.get("prompt")) is not None:
        return given
    ids = example.prompt_ids
    return tokenizer.decode(ids[1:] if ids[:1] == [tokenizer.bos_token_id] else ids)


def replies(tokenizer: Any, group: Group) -> list[Any]:
    """Completions in the form of their prompt, message lists or texts; for rewards and people, the ids are trained
    on."""
    if group.replies is not None and (group.prompts is not None or not isinstance(group.prompt, str)):
        return group.replies
    texts = tokenizer.batch_decode(group.completions, skip_special_tokens=True)
    return [answer_to(group.prompt, text) for text in texts]


def answer_to(prompt: Any, text: str) -> Any:
    """A completion of one turn in the form of its prompt."""
    if isinstance(prompt, str):
        return text
    begun = begun_answer(prompt) or {"role": "assistant", "content": ""}
    return [{**begun, "content": begun["content"] + text}]


def begun_answer(prompt: Any) -> dict[str, Any] | None:
    """The assistant's message at the end of a conversation, which a completion goes on with; None without one."""
    if isinstance(prompt, str) or not prompt or prompt[-1].get("role") != "assistant":
        return None
    return prompt[-1] if isinstance(prompt[-1].get("content"), str) else None


def completion_metrics(groups: Sequence[Group]) -> dict[str, Mean | Extreme]:
    """Lengths (tokens), the share cut off at the limit, mean and spread of rewards, groups without any spread."""
    metrics: dict[str, Mean | Extreme] = {}
    written = [(n, why) for g in groups for n, why in zip(written_tokens(g), g.finish_reasons, strict=True)]
    lengths = [count for count, _ in written]
    ended = [count for count, why in written if why == "stop"]
    for name, values in (("length", lengths), ("terminated_length", ended)):
        if values:
            metrics[f"completions/mean_{name}"] = Mean(float(sum(values)), float(len(values)))
            metrics[f"completions/min_{name}"] = Extreme(float(min(values)), largest=False)
            metrics[f"completions/max_{name}"] = Extreme(float(max(values)))
    metrics["completions/clipped_ratio"] = Mean(float(sum(why == "length" for _, why in written)), float(len(written)))
    rewarded = [group for group in groups if group.rewards is not None]
    for group in rewarded:
        known = group.rewards[~group.rewards.isnan()]
        spread = float(known.std()) if known.numel() > 1 else 0.0
        flat = float(known.numel() < 2 or known.max() == known.min())
        add(metrics, "reward", float(known.sum()), float(known.numel()))
        add(metrics, "reward_std", spread, 1.0)
        add(metrics, "frac_reward_zero_std", flat, 1.0)
        for index, name in enumerate(group.reward_names):
            column = group.values[:, index]
            column = column[~column.isnan()]
            add(metrics, f"rewards/{name}/std", float(column.std()) if column.numel() > 1 else 0.0, 1.0)
    return metrics


def written_tokens(group: Group) -> list[int]:
    """Tokens of each completion that the model wrote, those of tools and environments left out."""
    return [len(ids) for ids in group.completions] if group.loss_mask is None else [sum(m) for m in group.loss_mask]


def add(metrics: dict[str, Mean | Extreme], name: str, total: float, count: float) -> None:
    """Add to a mean of a dictionary of metrics."""
    mean = metrics.setdefault(name, Mean(0.0, 0.0))
    assert isinstance(mean, Mean)
    mean.total, mean.count = mean.total + total, mean.count + count


def sample_rows(tokenizer: Any, groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Rows for samples.jsonl: prompt, completion, finish reason, rewards by name, total, advantage, the row's columns,
    what rewards noted."""
    rows = []
    for group in groups:
        decoded = tokenizer.batch_decode(group.completions, skip_special_tokens=True)
        for i, text in enumerate(decoded):
            row: dict[str, Any] = {"prompt": group.prompt if group.prompts is None else group.prompts[i]}
            row["completion"] = text
            row["finish_reason"] = group.finish_reasons[i]
            if group.version is not None and (group.own is None or i < group.own):
                row["weights_of_step"] = group.version
            if group.replies is not None and group.turn_tokens is not None:
                row["turns"] = [{**m, "tokens": n} for m, n in zip(group.replies[i], group.turn_tokens[i], strict=True)]
            if group.values is not None and group.rewards is not None:
                row["rewards"] = dict(zip(group.reward_names, group.values[i].tolist(), strict=True))
                row["reward"] = float(group.rewards[i])
            if group.advantages is not None:
                row["advantage"] = float(group.advantages[i])
            if group.turn_rewards is not None:
                row["turn_rewards"] = group.turn_rewards[i]
            if group.turn_advantages is not None:
                row["turn_advantages"] = group.turn_advantages[i]
            if columns := {**group.columns, **{name: values[i] for name, values in group.extra.items()}}:
                row["columns"] = columns
            if group.notes:
                row["notes"] = {name: values[i] for name, values in group.notes.items()}
            rows.append(row)
    return rows


def groups_of_all_ranks(groups: Sequence[Group], world_size: int, rank: int) -> list[Group]:
    """The groups of every rank, rank by rank: this rank's own, and of others their rewards alone."""
    told = {"sizes": torch.tensor([len(group.completions) for group in groups], dtype=torch.long)}
    for name in ("values", "shaped", "rewards"):
        if parts := [part for group in groups if (part := getattr(group, name)) is not None]:
            told[name] = torch.cat(parts)
    turns = [turn for group in groups for turn in group.turn_rewards or []]
    told["turns"] = torch.tensor([len(turn) for turn in turns], dtype=torch.long)
    told["turn_rewards"] = torch.tensor([reward for turn in turns for reward in turn], dtype=torch.float64)
    everyone = gather_tensors(told, world_size, torch.device("cpu"))
    return [group for r, part in enumerate(everyone) for group in (groups if r == rank else _rewards_alone(part))]


def _rewards_alone(told: dict[str, torch.Tensor]) -> list[Group]:
    sizes = told["sizes"].tolist()
    known = {name: told[name].split(sizes) for name in ("values", "shaped", "rewards") if name in told}
    turns = [rewards.tolist() for rewards in told["turn_rewards"].split(told["turns"].tolist())]
    found = []
    for number, size in enumerate(sizes):
        own: dict[str, Any] = {name: parts[number] for name, parts in known.items()}
        if turns:
            own["turn_rewards"], turns = turns[:size], turns[size:]
        found.append(Group(Example([], []), [[]] * size, [], [], **own))
    return found
