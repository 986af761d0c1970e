"""BCO: a binary classifier between good and bad completions, whose logit is the implicit reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal, get_type_hints

import torch
from torch.nn.utils.rnn import pad_sequence

from strop.device import read, sent
from strop.engine.step import tree_field
from strop.errors import DataError, SetupError
from strop.losses import (
    BalancedMean,
    ClassSums,
    PooledMean,
    bco_loss,
    class_sums,
    class_terms,
    cumulative_pooled,
    density_ratio_weights,
    discriminator_loss,
    ema_balanced,
)
from strop.methods.unpaired import UnpairedTrainer, label_metrics
from strop.metric import LN2, LOSS, REWARD, Entry
from strop.records import Batch, Example, LossOutput, Scores, StepContext, Term
from strop.settings.config import ReferenceConfig
from strop.settings.prerequisites import Needs
from strop.settings.schema import Range, config


class DensityRatio:
    """Weights of rows by a logistic regression on prompt embeddings, fitted once on the training prompts.

    `embedding_func(input_ids=..., attention_mask=...)` returns one vector per prompt; `embedding_tokenizer` makes its
    inputs from the prompt's text (None: it gets the policy's own token ids, right-padded).
    """

    def __init__(self, embedding_func: Callable[..., Any], embedding_tokenizer: Any = None) -> None:
        self.embedding_func, self.embedding_tokenizer = embedding_func, embedding_tokenizer
        self._classifier: Any = None
        self._weights: dict[tuple[int, ...], float] = {}

    def fit(self, dataset: Any, tokenizer: Any, *, sample_size: int, bounds: tuple[float, float], seed: int) -> None:
        """Fit on up to `sample_size` prompts of each class, drawn with replacement where there are fewer."""
        try:
            from sklearn.linear_model import LogisticRegression
        except ImportError:
            raise SetupError("embedding_func needs scikit-learn. Install it: pip install 'strop[udm]'.") from None
        self._tokenizer, self._bounds = tokenizer, bounds
        classes: dict[bool, list[list[int]]] = {True: [], False: []}
        for index in range(len(dataset)):
            classes[bool(dataset[index].extras["label"])].append(dataset[index].prompt_ids)
        if not classes[True] or not classes[False]:
            raise DataError(
                "embedding_func weighs undesirable rows by desirable ones, but all rows have the same label."
            )
        generator = torch.Generator().manual_seed(seed)
        prompts, labels = [], []
        for label, rows in classes.items():
            picked = torch.randint(len(rows), (sample_size,), generator=generator).tolist()
            prompts += [rows[i] for i in picked]
            labels += [int(label)] * sample_size
        self._classifier = LogisticRegression(class_weight="balanced", max_iter=1000)
        self._classifier.fit(self.embed(prompts), labels)

    def embed(self, prompts: Sequence[Sequence[int]], rows_at_once: int = 64) -> Any:
        """Embeddings of prompts, as a NumPy array (rows, size)."""
        parts = []
        for start in range(0, len(prompts), rows_at_once):
            part = prompts[start : start + rows_at_once]
            if self.embedding_tokenizer is not None:
                texts = [self._tokenizer.decode(ids, skip_special_tokens=True) for ids in part]
                inputs = self.embedding_tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
            else:
                ids = pad_sequence([torch.tensor(row, dtype=torch.long) for row in part], batch_first=True)
                mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in part], batch_first=True)
                inputs = {"input_ids": ids, "attention_mask": mask}
            with torch.no_grad():
                found = self.embedding_func(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
            parts.append(torch.as_tensor(found).float().cpu())
        return torch.cat(parts).numpy()

    def __call__(self, examples: Sequence[Example]) -> torch.Tensor:
        """Weights (B,) of rows; each prompt is embedded once."""
        unknown = {tuple(e.prompt_ids) for e in examples} - set(self._weights)
        if unknown:
            keys = sorted(unknown)
            desirable = list(self._classifier.classes_).index(1)
            probabilities = torch.from_numpy(self._classifier.predict_proba(self.embed(keys))[:, desirable])
            weights = density_ratio_weights(probabilities, min_ratio=self._bounds[0], max_ratio=self._bounds[1])
            self._weights.update(zip(keys, weights.tolist(), strict=True))
        return torch.tensor([self._weights[tuple(e.prompt_ids)] for e in examples])


@config
class BCOConfig(ReferenceConfig):
    """Settings of `BCOTrainer`."""

    needs: ClassVar[dict[str, Needs]] = {
        **ReferenceConfig.needs,
        "delta_mode": Needs({"loss_type": ("bco",)}),
        "delta_decay": Needs({"delta_mode": ("ema_balanced",)}),
    }

    learning_rate: Annotated[float, Range(min=0)] = 5e-7
    beta: Annotated[float, Range(min=0, open_min=True)] = 0.1
    """Scale of the log-ratio in the classifier's logit."""
    loss_type: Literal["bco", "discriminator"] = "bco"
    """bco: the paper, with a running shift. discriminator: no shift, mean per class (set beta=1 for the literal
    form)."""
    delta_mode: Literal["ema_balanced", "cumulative_pooled"] = "ema_balanced"
    """How the shift follows the rewards: average of both classes' moving means (paper), or mean of all so far (TRL)."""
    delta_decay: Annotated[float, Range(min=0, max=1, open_max=True)] = 0.99
    """Decay of the moving means, per optimizer step."""
    prompt_sample_size: Annotated[int, Range(min=1)] = 1024
    """Prompts per class that the density-ratio classifier is fitted on (with `embedding_func`)."""
    min_density_ratio: Annotated[float, Range(min=0)] = 0.5
    """Least weight of an undesirable row (with `embedding_func`)."""
    max_density_ratio: Annotated[float, Range(min=0)] = 10.0
    """Greatest weight of an undesirable row (with `embedding_func`)."""


class BCOTrainer(UnpairedTrainer):
    """Binary classifier optimisation: softplus(-(r - delta)) on desirable rows, w softplus(r - delta) on others.

    r = beta log(pi / mu) of the completion. delta follows the rewards of all ranks, is updated once per optimizer
    step before it is used, stands still in evaluation, and is saved in checkpoints. With `embedding_func` (and
    `embedding_tokenizer`), undesirable rows are weighted by how likely their prompt is among the desirable ones.
    Rows: `prompt`, `completion`, `label`; pairs are split. Source: arXiv 2404.04656.
    """

    config_class = BCOConfig
    glossary: ClassVar[tuple[Entry, ...]] = (
        Entry(
            "loss", LOSS, "Classifier loss: good completions against bad ones.", "nats", "completion", high=LN2,
            healthy="starts at ln 2",
        ),
        Entry(
            "delta", REWARD, "BCO's reward shift: the middle between good and bad rewards.", "nats * beta",
            "running mean",
        ),
    )  # fmt: skip
    uses_reference = True

    def __init__(
        self,
        model: Any = None,
        ref_model: Any = None,
        args: BCOConfig | None = None,
        *,
        embedding_func: Callable[..., Any] | None = None,
        embedding_tokenizer: Any = None,
        **kwargs: Any,
    ) -> None:
        density = DensityRatio(embedding_func, embedding_tokenizer) if embedding_func is not None else None
        super().__init__(model, args, ref_model=ref_model, given={"density": density}, **kwargs)

    def after_init(self) -> None:
        self.density: DensityRatio | None = self.given["density"]
        self.delta_kind = BalancedMean if self.args.delta_mode == "ema_balanced" else PooledMean
        self.delta_state: BalancedMean | PooledMean = self.delta_kind()
        if self.density is not None and self.train_dataset is not None:
            self.density.fit(
                self.train_dataset,
                self.processing_class,
                sample_size=self.args.prompt_sample_size,
                bounds=(self.args.min_density_ratio, self.args.max_density_ratio),
                seed=self.args.seed,
            )

    @property
    def coupled(self) -> bool:  # type: ignore[override]
        return self.args.loss_type == "bco"

    def statistics(self, scores: Scores, batch: Batch, step: StepContext) -> dict[str, torch.Tensor]:
        labels = tree_field(batch, "label", dtype=torch.bool)
        return {"rewards": self.args.beta * (scores.sum() - step.ref.sum()).detach(), "labels": labels}

    def reduce_statistics(self, values: dict[str, torch.Tensor], training: bool) -> dict[str, Any]:
        """The shift of this step: in training of the means that the step's rewards have moved, else as it stands."""
        state = self.delta_state
        if training:
            sums: ClassSums = class_sums(values["rewards"], values["labels"])
            if isinstance(state, BalancedMean):
                state = ema_balanced(state, sums, decay=self.args.delta_decay)
            else:
                state = cumulative_pooled(state, sums)
        return {"delta": state.delta, "state": state}

    def advance(self, statistics: dict[str, Any]) -> None:
        self.delta_state = statistics["state"]

    def loss(self, scores: Scores, batch: Batch, step: StepContext) -> LossOutput:
        policy, ref = scores.sum(), step.ref.sum()  # (B,)
        labels = tree_field(batch, "label", dtype=torch.bool)
        weights = None if self.density is None else sent(self.density(batch.examples), policy.device)  # (B,)
        delta = step.statistics.get("delta", 0.0)
        if self.args.loss_type == "bco":
            terms = [Term(bco_loss(self.args.beta * (policy - ref), labels, delta, weights=weights), "trees")]
        else:
            terms = class_terms(discriminator_loss(policy - ref, labels, beta=self.args.beta), labels)
        own = torch.ones_like(labels)
        rewards = self.args.beta * (policy - ref).detach()
        return LossOutput(terms, label_metrics(scores, own, labels, rewards, policy.detach(), delta=delta))

    def extra_state(self) -> dict[str, Any]:
        names = get_type_hints(type(self.delta_state))
        kept = {n: None if (value := getattr(self.delta_state, n)) is None else read([value])[0] for n in names}
        return {**super().extra_state(), "delta": kept}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self.delta_state = self.delta_kind(**state["delta"])
