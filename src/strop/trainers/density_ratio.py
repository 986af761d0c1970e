"""BCO's underlying distribution matching: how likely a prompt is among the desirable ones, from its embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from strop.errors import DataError, SetupError
from strop.losses import density_ratio_weights
from strop.records import Example


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

    def embed(self, prompts: Sequence[list[int]], rows_at_once: int = 64) -> Any:
        """Embeddings of prompts, as a NumPy array (rows, size)."""
        parts = []
        for start in range(0, len(prompts), rows_at_once):
            part = prompts[start : start + rows_at_once]
            if self.embedding_tokenizer is not None:
                texts = [self._tokenizer.decode(ids, skip_special_tokens=True) for ids in part]
                inputs = self.embedding_tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
            else:
                longest = max(map(len, part))
                ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in part])
                mask = torch.tensor([[*[1] * len(row), *[0] * (longest - len(row))] for row in part])
                inputs = {"input_ids": ids, "attention_mask": mask}
            with torch.no_grad():
                parts.append(
                    torch.as_tensor(
                        self.embedding_func(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
                    )
                    .float()
                    .cpu()
                )
        return torch.cat(parts).numpy()

    def __call__(self, examples: Sequence[Example]) -> torch.Tensor:
        """Weights (B,) of rows; each prompt is embedded once."""
        unknown = {tuple(e.prompt_ids) for e in examples} - set(self._weights)
        if unknown:
            keys = sorted(unknown)
            desirable = list(self._classifier.classes_).index(1)
            probabilities = torch.from_numpy(
                self._classifier.predict_proba(self.embed([list(k) for k in keys]))[:, desirable]
            )
            weights = density_ratio_weights(probabilities, min_ratio=self._bounds[0], max_ratio=self._bounds[1])
            self._weights.update(zip(keys, weights.tolist(), strict=True))
        return torch.tensor([self._weights[tuple(e.prompt_ids)] for e in examples])
