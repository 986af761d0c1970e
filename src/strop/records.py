"""The records that flow down the river: rows, examples, batches, scores, rollouts, losses.

One unit of training is a **tree of height one**: one prompt and the completions that hang on it. `data/` makes
an `Example` per tree, `model/` lays examples out as a `Batch`, a forest of any depth, and turns it into `Scores`, a
method turns scores into a `LossOutput`. Everything per token is flat and in one order, whatever the layout: tree by
tree, completion by completion, position by position, masked-out tokens left out.

Shape letters: B trees, S completions (of all trees), N scored tokens, T input tokens laid out, P prompt tokens,
C completion tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    import torch

Row = dict[str, Any]
"""A row as the user wrote it: column name -> value."""


class Want(enum.Flag):
    """What a forward pass is asked for. Flags add up: `Want.LOGPS | Want.ENTROPY`."""

    LOGPS = enum.auto()  # log-probability of every scored token (nats)
    ENTROPY = enum.auto()  # entropy of the distribution each scored token was drawn from (nats)
    TOP1 = enum.auto()  # whether the scored token is the most probable one
    MEAN_LOGIT = enum.auto()  # mean over the vocabulary of the logits
    LOG_SQUARE = enum.auto()  # log sum_v p(v)^2 (WPO's alignment term)
    SCORE = enum.auto()  # scalar head on the last token of every completion (reward models)
    STEP = enum.auto()  # token-classification head on every token with loss_mask 1, unshifted (PRM)
    VALUE = enum.auto()  # scalar head on the state that each scored token was drawn from (PPO critic)
    HIDDEN = enum.auto()  # final hidden state that each scored token was drawn from (GKD, contrastive losses)


class Extras(TypedDict, total=False):
    """What a row brings beside its tokens: only what it has, as plain values, so that it can be stored."""

    columns: dict[str, Any]  # those that no tree is made of; rewards and judges ask for them by name
    prompt: Any  # text or messages, as the row had them
    tools: list[Any]  # schemas that the prompt offers
    chat_template_kwargs: dict[str, Any]  # variables of the chat template, where the row has its own
    label: bool  # whether an unpaired completion is desirable
    labels: list[float]  # how good each step is, in [0, 1]
    margin: float  # how much better the chosen completion is
    truncated: bool  # tokens were cut
    partner: int | None  # KTO: the row whose completion is the mismatched one; None: no row differs in both
    mismatched_only: bool  # KTO: the first completion is the mismatched one


NOT_ASKED: Any = None
"""What a field holds that nobody asked for. Its type does not say so, as who reads a field has asked for it."""

EACH_COMPLETION, EACH_TOKEN = {"each": "completion"}, {"each": "token"}


@dataclass(slots=True)
class Sampled:
    """What an online method knows about the completions that it sampled for a tree; None where it has no use for it.

    Fields of each completion have one entry per completion, those of each token a list as long as it in its place.
    """

    place: int = 0  # of its prompt in this rank's share of the round
    continues: bool = False  # a further piece of a tree, whose prompt is counted with the first
    advantages: list[float] | None = field(default=None, metadata=EACH_COMPLETION)
    totals: list[float] | None = field(default=None, metadata=EACH_COMPLETION)  # rewards, PPO
    sampler_logps: list[list[float]] | None = field(default=None, metadata=EACH_TOKEN)  # nats
    old_logps: list[list[float]] | None = field(default=None, metadata=EACH_TOKEN)  # nats
    old_values: list[list[float]] | None = field(default=None, metadata=EACH_TOKEN)
    token_rewards: list[list[float]] | None = field(default=None, metadata=EACH_TOKEN)
    token_advantages: list[list[float]] | None = field(default=None, metadata=EACH_TOKEN)
    token_turns: list[list[int]] | None = field(default=None, metadata=EACH_TOKEN)  # its turn in the trajectory
    returns: list[list[float]] | None = field(default=None, metadata=EACH_TOKEN)
    scores: list[float] | None = None  # rewards of the two sides of a pair
    ended: list[float] | None = None  # whether each side ended by itself, 1 or 0
    policy_wins: bool | None = None  # over the other side
    probability: float | None = None  # that it is preferred
    of: list[int] | None = field(default=None, metadata=EACH_COMPLETION)  # its place in the group
    trajectory: int | None = None  # number, in the round, of the one trajectory that the tree is a stretch of
    follows: bool = False  # a later stretch of its trajectory, which is counted with the first
    baseline: float | None = None  # mean reward of the other prompts
    version: int | None = None  # optimizer steps that the weights had seen which wrote it, where it was made ahead

    def part(self, some: slice) -> Sampled:
        """What is known about some of the completions, in a further piece of their tree."""
        size = some.stop if some.stop is not None else 0
        return replace(self.pick(range(*some.indices(size))), continues=bool(some.start))

    def pick(self, some: Sequence[int]) -> Sampled:
        """What is known about some of the completions."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if "each" in f.metadata}
        picked: dict[str, Any] = {n: [values[i] for i in some] for n, values in own.items() if values is not None}
        return replace(self, **picked)

    def cut(self, tokens: slice) -> Sampled:
        """What is known about some of the tokens of each completion."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.metadata == EACH_TOKEN}
        parts: dict[str, Any] = {n: [v[tokens] for v in values] for n, values in own.items() if values is not None}
        return replace(self, **parts)


@dataclass(slots=True)
class Example:
    """One tree: a prompt and its completions, as token ids.

    `prompt_ids` may be empty; then the first token of a completion has nothing to be predicted from and is not
    scored. `loss_mask[i][t]` is 1 where token t of completion i is scored; None means every token is. With
    `Want.STEP` a mask of 1 marks the tokens whose own hidden state is classified (step ends). With
    `score_prompt` the prompt's tokens 1..P-1 are scored too (ORPO's optional prompt NLL).
    """

    prompt_ids: list[int]  # (P,)
    completions: list[list[int]]  # S_i lists of (C_i,), C_i >= 1
    loss_mask: list[list[int]] | None = None  # like completions, 0 or 1
    score_prompt: bool = False
    extras: Extras = field(default_factory=Extras)
    row: int = -1  # number of the source row, -1 if there is none
    sampled: Sampled = NOT_ASKED  # where the completions were sampled

    def mask(self, index: int) -> list[int]:
        """The 0/1 mask of completion `index`, (C_i,)."""
        return [1] * len(self.completions[index]) if self.loss_mask is None else self.loss_mask[index]

    def keys(self) -> list[str]:
        """The columns under which a prepared row can be looked at: `example["input_ids"]`, `dict(example)`."""
        named = {0: [], 1: ["completion_ids", "input_ids", "labels"], 2: ["chosen_ids", "rejected_ids"]}
        own = 1 if "label" in self.extras else len(self.completions)  # KTO's second completion is another prompt's
        return ["prompt_ids", *named.get(own, ["completions"])]

    def __contains__(self, name: object) -> bool:
        return str(name).replace("_input_ids", "_ids") in self.keys()

    def __getitem__(self, name: str) -> Any:
        """A column of `keys`: ids, or `labels` (-100 where nothing is learned); these are copies.

        `chosen_input_ids`, `rejected_input_ids` and `completion_input_ids` are those ids after the prompt's.
        """
        if name not in self:
            raise KeyError(f"{name!r}; this row has {', '.join(self.keys())}")
        if name == "completions":
            return [list(ids) for ids in self.completions]
        if name in ("prompt_ids", "prompt_input_ids"):
            return list(self.prompt_ids)
        own = self.completions[name.startswith("rejected_")]
        if name.endswith("input_ids"):
            return self.prompt_ids + own
        if name == "labels":
            learned = zip(own, self.mask(0), strict=True)
            prompt = self.prompt_ids if self.score_prompt else [-100] * len(self.prompt_ids)
            return [*prompt, *(token if on else -100 for token, on in learned)]
        return list(own)

    def to_plain(self) -> dict[str, Any]:
        """A dictionary of plain values, for checkpoints."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return plain | {"sampled": None if self.sampled is None else asdict(self.sampled)}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Example:
        known = values.get("sampled")
        return cls(**{**values, "sampled": None if known is None else Sampled(**known)})

    @property
    def num_tokens(self) -> int:
        """Tokens of the tree, the prompt counted once."""
        return len(self.prompt_ids) + sum(map(len, self.completions))


@dataclass(slots=True)
class Batch:
    """The trees of one micro-batch laid out for one forward pass.

    `tree` and `packed` layouts are one row (1, T), a forest of segments; position ids go on from a segment to those
    that hang on it. The `padded` layout is (S, T) with an attention mask. `source` points into the
    flattened (rows * T) hidden states.
    """

    examples: list[Example]
    layout: str  # "tree", "packed" or "padded"
    input_ids: torch.Tensor  # (1, T) or (S, T)
    position_ids: torch.Tensor  # like input_ids
    attention_mask: torch.Tensor | None  # (S, T) for "padded", else None
    segments: Any  # attention segments of the flat layouts (model/layout.py), None for "padded"
    source: torch.Tensor  # (N,) position whose hidden state scores token n
    targets: torch.Tensor  # (N,) the scored token ids
    segment: torch.Tensor  # (N,) completion, 0..S-1, of every scored token
    last: torch.Tensor  # (S,) position of each completion's last token (SCORE head)
    tree_of: torch.Tensor  # (S,) tree, 0..B-1, of every completion
    prompt_source: torch.Tensor | None = None  # (M,) as source, for trees with score_prompt
    prompt_targets: torch.Tensor | None = None  # (M,)
    prompt_segment: torch.Tensor | None = None  # (M,) tree of every scored prompt token
    given_tokens: int = 0  # of the completions' rows, each with a prompt of its own and without padding
    distinct: torch.Tensor | None = None  # (K,) scored tokens that differ in source or target; None: all of them do
    alike: torch.Tensor | None = None  # (N,) which of these each scored token is
    sizes: list[int] = field(default_factory=list)  # (S,) scored tokens of each completion, as the host knows them

    @property
    def num_completions(self) -> int:
        return int(self.tree_of.numel())


@dataclass(slots=True)
class Scores:
    """Per-token and per-completion quantities of one forward pass, in the flat order; None where not asked for."""

    segment: torch.Tensor  # (N,) completion of every scored token
    num_completions: int
    logps: torch.Tensor = NOT_ASKED  # (N,) nats, float32 or wider
    entropy: torch.Tensor = NOT_ASKED  # (N,) nats
    top1: torch.Tensor = NOT_ASKED  # (N,) bool
    mean_logit: torch.Tensor = NOT_ASKED  # (N,)
    log_square: torch.Tensor = NOT_ASKED  # (N,) log sum_v p(v)^2
    scores: torch.Tensor = NOT_ASKED  # (S,) reward-head scores
    step_logits: torch.Tensor = NOT_ASKED  # (N, 2) step-head logits
    values: torch.Tensor = NOT_ASKED  # (N,) critic values
    hidden: torch.Tensor = NOT_ASKED  # (N, H) final hidden states
    prompt_logps: torch.Tensor = NOT_ASKED  # (M,) scored prompt tokens
    prompt_segment: torch.Tensor | None = None  # (M,) tree of every scored prompt token
    aux_loss: torch.Tensor = NOT_ASKED  # () router load-balancing loss of mixture-of-experts models

    def sum(self, values: torch.Tensor | None = None) -> torch.Tensor:
        """Sum of a per-token quantity (default: `logps`) over each completion, (S,)."""
        values = self.logps if values is None else values
        return values.new_zeros(self.num_completions).index_add(0, self.segment, values)

    @property
    def lengths(self) -> torch.Tensor:
        """Scored tokens of each completion, (S,) in the dtype of the log-probs."""
        like = next(v for v in (self.logps, self.values, self.hidden, self.step_logits) if v is not None)
        ones = like.new_ones(self.segment.shape[0])
        return like.new_zeros(self.num_completions).index_add(0, self.segment, ones)


@dataclass(slots=True)
class Stretch:
    """A part of a trajectory that lies on one context: turns of the model, and answers between them."""

    prompt_ids: list[int]  # the context that it begins with
    ids: list[int]
    mask: list[int]  # 1 where the model wrote the token
    logps: list[float]  # nats, 0 where it did not

    def write(self, ids: Sequence[int], logps: Sequence[float] | None = None) -> None:
        """Append tokens of the model (with log-probs) or of an answer (without)."""
        self.ids += ids
        self.mask += [int(logps is not None)] * len(ids)
        self.logps += [0.0] * len(ids) if logps is None else list(logps)


@dataclass(slots=True)
class Rollout:
    """Completions sampled for a list of prompts, as the engine produced them: ids are never decoded on the way to
    a loss."""

    prompts: list[list[int]]  # prompt ids, one list per prompt
    completions: list[list[list[int]]]  # [prompt][sample] ids, the stop id included where it was emitted
    sampler_logps: list[list[list[float]]]  # like completions; nats, under the very distribution sampled from
    finish_reasons: list[list[str]]  # [prompt][sample] "stop" or "length"
    loss_mask: list[list[list[int]]] | None = None  # 0 where the model did not write the token (tools); None = all 1
    prefilled: int | None = None  # prompt tokens that were computed; None = the engine does not say

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts, each as often as it has completions."""
        return sum(len(ids) * len(written) for ids, written in zip(self.prompts, self.completions, strict=True))


@dataclass(slots=True)
class Mean:
    """A metric as a sum and a count, so that it can be added up over micro-batches, steps and ranks before dividing."""

    total: Any  # () tensor or float
    count: Any  # () tensor or float


@dataclass(slots=True)
class PushedMean(Mean):
    """A mean that a reward function named (`log_metric`): it never takes the place of one of the run's own."""


@dataclass(slots=True)
class Extreme:
    """A metric that is the largest (or smallest) value seen since the last log line."""

    value: Any  # () tensor or float
    largest: bool = True


@dataclass(slots=True)
class Term:
    """One additive part of a loss: unreduced values, and the name of the step-wide count that divides their sum."""

    values: torch.Tensor  # (n,)
    per: str  # "tokens", "completions", "trees", or a count that the method declares
    weight: Any = 1.0  # a number, or a tensor () of one in the dtype of the values


@dataclass(slots=True)
class LossOutput:
    """What a method returns for one micro-batch: loss = sum over terms of weight * values.sum() / counts[per]."""

    terms: list[Term]
    metrics: dict[str, Mean | Extreme] = field(default_factory=dict)


Counts = dict[str, float]


@dataclass
class StepWork:
    """The rows that one rank brings to one optimizer step, and what is known about the whole step."""

    examples: list[Example]
    counts: Counts = field(default_factory=dict)  # over all ranks
    stand_in: bool = False  # this rank had no row: one example is computed with weight zero
    log: bool = True  # metrics that cost extra are wanted
    parts: list[list[Example]] = field(default_factory=list)  # micro-batches, once they are cut
    losses: list[torch.Tensor] = field(default_factory=list)  # share of the step's loss of each, () each

    @property
    def num_tokens(self) -> int:
        """Tokens computed on this rank, each prompt once."""
        return 0 if self.stand_in else sum(example.num_tokens for example in self.examples)


@dataclass
class StepContext:
    """What a method's loss may look at beside the scores of its micro-batch."""

    counts: Counts  # denominators over the step and all ranks
    ref: Scores = NOT_ASKED  # the reference model's scores of the same micro-batch, for methods that have one
    teacher: Any = None  # what a method's own second model contributed (GKD)
    statistics: dict[str, Any] = field(default_factory=dict)  # whole-step statistics of coupled methods
    rows: slice | None = None  # this micro-batch's trees within the step's gathered statistics
    training: bool = True
    log: bool = True
