"""GKD: learn a teacher's distribution, on given completions and on the student's own."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from torch.utils.checkpoint import checkpoint

from strop.data import DatasetKind, load_rows
from strop.engine import rows
from strop.engine.parts import Facts, resolve_model
from strop.engine.refusals import check_apart
from strop.errors import ConfigError, RolloutError
from strop.losses import fused_jsd, jsd_loss, mean_of
from strop.metric import LOSS, Entry
from strop.model import LMHead, base_model, lm_head_of, score_batch
from strop.model.forward import vocab_size
from strop.online.groups import Group
from strop.online.sampling import teacher_engine
from strop.online.trainer import OnlineTrainer
from strop.records import Batch, Example, LossOutput, Mean, Sampled, Scores, StepContext, Term, Want
from strop.settings.online import OnlineConfig
from strop.settings.prerequisites import Needs
from strop.settings.schema import Range, config


def divergence(
    student_hidden: torch.Tensor,
    student: LMHead,
    teacher_hidden: torch.Tensor,
    teacher: LMHead,
    *,
    chunk: int,
    vocabulary: int | None = None,
    **options: Any,
) -> torch.Tensor:
    """JSD of every token, (N,), from hidden states (N, H) and output layers of student and teacher.

    With `vocabulary` both distributions are those over the first so many tokens: rows behind them are padding.

    Plain linear layers take the fused form, their logit scale moved into the hidden state. Others (adapters on the
    head, quantised weights, soft-capped logits, weights spread over ranks) are called chunk by chunk, and again in the
    backward pass.
    """
    heads = (student, teacher)
    if all(head.is_plain and head.softcap is None and not head.is_spread for head in heads):
        layers: Any = (student.module, teacher.module)
        if all(layer.bias is None or head.scale == 1.0 for layer, head in zip(layers, heads, strict=True)):
            (weight, bias), (other_weight, other_bias) = ((layer.weight, layer.bias) for layer in layers)
            return fused_jsd(
                student_hidden * student.scale, cut(weight, vocabulary), cut(bias, vocabulary),
                teacher_hidden * teacher.scale, cut(other_weight, vocabulary), cut(other_bias, vocabulary),
                chunk=chunk, **options,
            )  # fmt: skip

    def part(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target = teacher.logits(other)[:, :vocabulary]
        return jsd_loss(student.logits(own)[:, :vocabulary], target, **options)

    pieces = [
        checkpoint(part, student_hidden[i : i + chunk], teacher_hidden[i : i + chunk], use_reentrant=False)
        for i in range(0, len(student_hidden), chunk)
    ]
    return torch.cat(pieces) if pieces else student_hidden.sum(1)


NO_REWARD = (
    "reward_weights",
    "reward_on_error",
    "reward_penalty",
    "reward_timeout",
    "reward_isolation",
    "missing_eos_penalty",
    "advantage_level",
)
NO_REFERENCE = ("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps", "ref_adapter_name")


@config
class GKDConfig(OnlineConfig):
    """Settings of `GKDTrainer`."""

    headline: ClassVar[tuple[str, ...]] = ("jsd", "on_policy_fraction")
    best_metric: ClassVar[str] = "loss"
    removed: ClassVar[dict[str, str]] = {
        **OnlineConfig.removed,
        "completion_only_loss": "The divergence is taken on completion tokens always; remove it.",
        "assistant_only_loss": "The last turn is the completion, and nothing else is learned; remove it.",
        "loss_type": "The divergence is chosen by beta; remove it.",
        "packing": "Rows are computed without padding as they are; remove it.",
        "packing_strategy": "Rows are computed without padding as they are; remove it.",
        "eval_packing": "Rows are computed without padding as they are; remove it.",
        "dataset_text_field": "Rows need prompt and completion, or messages; plain text has no completion to learn.",
        "dataset_kwargs": "Rows that are tokenised already are recognised by their columns; remove it.",
    }
    unused: ClassVar[dict[str, str]] = {
        **{name: why for name, why in OnlineConfig.unused.items() if name != "truncation_mode"},
        **dict.fromkeys(NO_REWARD, "GKD asks for no reward; remove it."),
        **dict.fromkeys(NO_REFERENCE, "GKD compares with the teacher, not with a reference; remove it."),
        "num_generations_eval": "Evaluation uses the completion of a row, or one that is sampled; remove it.",
        "log_unique_prompts": "Each prompt has one completion; remove it.",
    }
    needs: ClassVar[dict[str, Needs]] = {
        **OnlineConfig.needs,
        "seq_kd": Needs({"lmbda": Range(max=1, open_max=True)}),
    }

    learning_rate: Annotated[float, Range(min=0)] = 2e-5
    max_length: Annotated[int, Range(min=2)] | None = 1024
    """Most tokens of prompt + completion."""
    max_completion_length: Annotated[int, Range(min=1)] | None = 128
    """Most tokens of a sampled completion."""
    num_generations: Annotated[int, Range(min=1, max=1)] = 1
    """Completions per prompt; always one here."""
    temperature: Annotated[float, Range(min=0, open_min=True)] = 0.9
    """Temperature of sampling. The divergence has its own: kd_temperature."""
    kd_temperature: Annotated[float, Range(min=0, open_min=True)] = 1.0
    """Divides the logits of student and teacher in the divergence: above 1 softens both."""
    scale_by_t2: bool = False
    """Multiply the divergence by kd_temperature squared, which keeps the size of gradients."""
    lmbda: Annotated[float, Range(min=0, max=1)] = 0.5
    """Share of steps on the student's own completions; the others use the rows' completions."""
    beta: Annotated[float, Range(min=0, max=1)] = 0.5
    """Which divergence: 0 is KL(teacher || student), 1 is KL(student || teacher), between them a Jensen-Shannon mix."""
    seq_kd: bool = False
    """Use completions sampled from the teacher instead of the rows' own."""
    teacher_model_name_or_path: str | None = None
    """Teacher by id or folder, for a trainer that is given no teacher_model."""
    teacher_model_init_kwargs: dict[str, Any] | None = None
    """Keyword arguments for `from_pretrained` of a teacher given by id or path."""
    chunk_tokens: Annotated[int, Range(min=1)] = 256
    """Tokens whose vocabulary-wide logits exist at once in the divergence."""


class GKDTrainer(OnlineTrainer):
    """Generalised knowledge distillation: L = mean over completion tokens of JSD_beta(teacher, student).

    JSD_beta = beta KL(p_T || M) + (1 - beta) KL(p_S || M), M = beta p_T + (1 - beta) p_S; the ends of beta are the two
    plain KLs. With probability `lmbda` a step learns on completions that the student samples, else on the rows' (or,
    with `seq_kd`, the teacher's); the draw is the same on all ranks. No gradient flows through sampling or teacher.
    The mean counts the tokens that are trained on. Rows: `prompt` + `completion`, or `messages`; where every step
    samples (`lmbda=1`, `seq_kd`) `prompt` alone will do, and evaluation samples too.
    With `max_staleness` the student's completions are those of older weights: other states, at each of which the loss
    is exact, because no gradient flows through sampling; nothing corrects which states are seen.
    Source: arXiv 2306.13649 Eq. 1.
    """

    config_class = GKDConfig
    glossary: ClassVar[tuple[Entry, ...]] = (
        Entry(
            "loss", LOSS, "Divergence between student and teacher.", "nats", "token", healthy="falls",
            advice="Rises on student samples: lower the learning rate or lmbda.",
        ),
        Entry(
            "jsd", LOSS, "Generalised Jensen-Shannon divergence between student and teacher.", "nats", "token",
            healthy="falls",
        ),
        Entry(
            "on_policy_fraction", LOSS, "Share of rows whose completion the student wrote itself.", "share", "row",
            healthy="near lmbda",
        ),
    )  # fmt: skip
    dataset_kind = DatasetKind.PROMPT_COMPLETION
    needs_reward = False
    can_fork = True

    def __init__(
        self, model: Any = None, teacher_model: Any = None, args: GKDConfig | None = None, **kwargs: Any
    ) -> None:
        named = getattr(args, "teacher_model_name_or_path", None)
        if given := [name for name in ("reward_funcs", "reward_model", "judge") if kwargs.get(name) is not None]:
            raise ConfigError(f"GKDTrainer learns from a teacher and asks no reward; remove {' and '.join(given)}.")
        teacher = named if teacher_model is None else teacher_model
        if teacher is None:
            raise ConfigError("GKDTrainer needs a teacher: pass teacher_model=, a model, an id or a path.")
        super().__init__(model, None, args, given={"teacher": teacher}, **kwargs)

    @classmethod
    def facts(cls, args: Any, given: Mapping[str, Any]) -> Facts:
        options = rows.tokenize_options(args, chat_template_kwargs=args.chat_template_kwargs)
        found = replace(super().facts(args, given), uses_reference=False, tokenize=options)
        return replace(found, convert=prompts_will_do) if args.lmbda == 1 or args.seq_kd else found

    @property
    def group_size(self) -> int:
        return 1

    @property
    def teacher_model(self) -> Any:
        """The teacher, by its name in the constructor."""
        return self.teacher

    def after_init(self) -> None:
        super().after_init()
        options = self.args.teacher_model_init_kwargs or {}
        self.teacher = resolve_model(
            self.args, self.given["teacher"], "causal", None, None, trainable=False, init_kwargs=options
        )
        check_apart("teacher_model", self.teacher, self.model)
        self.teacher.eval().requires_grad_(False)
        self.place(self.teacher, sampled=self.args.seq_kd)
        self.vocabulary = shared_vocabulary(
            base_model(self.model), base_model(self.teacher), len(self.processing_class)
        )
        self._teacher_generator: Any = None
        self._teacher_speaks = False

    def want(self, log: bool) -> Want:
        return Want.HIDDEN | Want.LOGPS | Want.ENTROPY | Want.TOP1 if log else Want.HIDDEN

    def score_options(self) -> dict[str, Any]:
        return {**super().score_options(), "temperature": 1.0}

    # ---- which completions a step learns on -------------------------------------------------------------------

    def on_policy(self, moment: int) -> bool:
        """Whether a round uses the student's completions; the same on all ranks and after a resume."""
        return random.Random(f"{self.args.seed} {moment}").random() < self.args.lmbda

    @contextmanager
    def speaker(self, moment: int) -> Iterator[bool]:
        """Where neither the student nor the teacher samples, the rows' own completions are learned from."""
        student = self.on_policy(moment)
        if student or not self.args.seq_kd:
            yield student
            return
        if self._teacher_generator is None:
            self._teacher_generator = teacher_engine(self.args, self.teacher, self.processing_class)
        own, self._generator, self._teacher_speaks = self.generator, self._teacher_generator, True
        try:
            yield True
        finally:
            self._generator, self._teacher_speaks = own, False

    def fill_buffer(self, prompts: list[Example]) -> None:
        student, share = self.on_policy(self.rounds), 1 / self.args.world_size
        self._metrics["train"].add({"on_policy_fraction": Mean(student * share, share)})
        super().fill_buffer(prompts)

    def learnable(self, groups: list[Group], prompts: list[Example]) -> list[Example]:
        return super().learnable(groups, prompts) if groups else prompts

    @property
    def sampled_model(self) -> Any:
        return self.teacher if self._teacher_speaks else self.policy

    def make_trees(self, groups: list[Group], training: bool) -> list[Example]:
        largest = max((max(ids) for group in groups for ids in group.completions if ids), default=0)
        if self.vocabulary is not None and largest >= self.vocabulary:
            raise RolloutError(
                f"A completion was sampled that holds token {largest}, a row of padding: student and teacher share "
                f"{self.vocabulary} tokens. Cut the larger model: model.resize_token_embeddings({self.vocabulary})."
            )
        own = enumerate(groups)
        return rows.flatten(self.trees_of(group, Sampled(place, version=group.version)) for place, group in own)

    def prepare_evaluation(self, examples: list[Example]) -> list[Example]:
        if all(example.completions for example in examples):
            return examples
        return self.make_trees(self.rollout(examples, 1, training=False), training=False)

    def prepare_stand_in(self, example: Example) -> Example:
        return example if example.completions else super().prepare_stand_in(example)

    # ---- the loss ---------------------------------------------------------------------------------------------

    def no_loss(self, scores: Scores) -> torch.Tensor:
        return super().no_loss(scores) + 0.0 * lm_head_of(base_model(self.model)).logits(scores.hidden[:1]).sum()

    def context(self, batch: Batch, work: Any, training: bool) -> StepContext:
        step = super().context(batch, work, training)
        with torch.no_grad():
            step.teacher = self.in_one_precision(score_batch, self.teacher, batch, Want.HIDDEN)
        return step

    def loss(self, scores: Scores, batch: Batch, step: StepContext) -> LossOutput:
        values = divergence(
            scores.hidden,
            lm_head_of(base_model(self.model)),
            step.teacher.hidden,
            lm_head_of(base_model(self.teacher)),
            beta=self.args.beta,
            temperature=self.args.kd_temperature,
            scale_by_t2=self.args.scale_by_t2,
            chunk=self.args.chunk_tokens,
            vocabulary=self.vocabulary,
        )  # (N,)
        metrics = {"jsd": mean_of(values)}
        for name, tensor in (("entropy", scores.entropy), ("mean_token_accuracy", scores.top1)):
            if tensor is not None:
                metrics[name] = mean_of(tensor)
        return LossOutput([Term(values, "tokens")], metrics)  # type: ignore[arg-type]


def prompts_will_do(preparation: rows.RowPreparation, dataset: Any, name: str) -> Any:
    """Rows as they are, where every step samples: with a completion, or a prompt alone."""
    if not rows.is_prepared(dataset):
        first = next(iter(load_rows(dataset, columns=preparation.args.columns)), {})
        if first.get("prompt") is not None and first.get("completion") is None:
            preparation = replace(preparation, dataset_kind=DatasetKind.PROMPT_ONLY)
    return rows.tokenized(preparation, dataset, name)


def cut(rows: Any, vocabulary: int | None) -> Any:
    """The rows of an output layer that stand for tokens."""
    return rows if rows is None or vocabulary is None or len(rows) == vocabulary else rows[:vocabulary]


def shared_vocabulary(student: Any, teacher: Any, tokens: int) -> int | None:
    """How many tokens both models give a probability; None where their output layers are of one size.

    Models of one family are padded to different sizes. The rows behind the tokenizer's last token stand for nothing.

    Raises:
        ConfigError: the smaller vocabulary lacks tokens of the tokenizer.
    """
    sizes = vocab_size(student), vocab_size(teacher)
    if sizes[0] == sizes[1] or None in sizes:
        return None
    least = min(size for size in sizes if size is not None)
    if least < tokens:
        raise ConfigError(
            f"The student has {sizes[0]} tokens in its vocabulary and the teacher {sizes[1]}, and the tokenizer knows "
            f"{tokens}; their distributions cannot be compared. Choose a teacher of the same family, with the same "
            "tokenizer."
        )
    return least
