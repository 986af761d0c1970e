"""A score or step head on the last hidden states of any causal language model.

transformers has a sequence or token classification class for some architectures only. For the others the class is made
here: the causal model's own, its output layer replaced by a linear head named `score`, as transformers names its own.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput

from strop.model.padding_token import note_in_card
from strop.model.wrappers import base_model, decoder_of

_SUFFIX = {"score": "ForSequenceClassification", "step": "ForTokenClassification"}


class HeadOnStates(PreTrainedModel):
    """What a class made by `headed_class` adds to the causal model's class it stands before."""

    all_tied_weights_keys: dict[str, str]

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        decoder = decoder_of(self)
        replaced = [name for name, child in self.named_children() if not any(m is decoder for m in child.modules())]
        # The first of them reads the last hidden state, whose width is not always hidden_size.
        layers = (layer for name in replaced for layer in getattr(self, name).modules() if isinstance(layer, nn.Linear))
        width = next(layers, super().get_output_embeddings()).weight.shape[1]
        for name in replaced:
            delattr(self, name)
        self.num_labels = config.num_labels
        self.score = nn.Linear(width, config.num_labels, bias=False)
        kept = {name for name, _ in self.named_parameters(remove_duplicate=False)}
        ties = self.all_tied_weights_keys
        self.all_tied_weights_keys = {own: other for own, other in ties.items() if {own, other} <= kept}

    @classmethod
    def can_generate(cls) -> bool:
        return False

    def get_output_embeddings(self) -> None:
        return None

    def forward(
        self, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> SequenceClassifierOutput | TokenClassifierOutput:
        """Logits of every row's last attended token, (B, labels); of every token, (B, T, labels), for a step head."""
        states = decoder_of(self)(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        logits = self.score(states)  # (B, T, labels)
        if type(self).__name__.endswith(_SUFFIX["step"]):
            return TokenClassifierOutput(logits=logits)
        rows, length = logits.shape[:2]
        last = torch.full((rows,), length - 1, device=logits.device)
        if attention_mask is not None:
            places = torch.arange(length, device=logits.device)
            last = (places * attention_mask.to(logits.device)).argmax(dim=1)
        return SequenceClassifierOutput(logits=logits[torch.arange(rows, device=logits.device), last])


@functools.cache
def headed_class(causal: type[PreTrainedModel], task: str) -> type[HeadOnStates]:
    """The class of a causal language model's layers with a head for `task` ("score" or "step")."""
    name = causal.__name__
    for ending in ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"):
        name = name.removesuffix(ending)
    if hasattr(sys.modules[causal.__module__], name + _SUFFIX[task]):  # the encoder of the family
        name = causal.__name__
    # In the architecture's own module: buffers of what transformers takes for foreign code stay zero after loading.
    return type(name + _SUFFIX[task], (HeadOnStates, causal), {"__module__": causal.__module__})


def note_loading(model: nn.Module, folder: str | Path) -> None:
    """Say in a folder's model card how its model is loaded, where transformers alone cannot."""
    inner = base_model(model)
    if isinstance(inner, HeadOnStates):
        note_in_card(Path(folder), _note(inner))


def _note(model: HeadOnStates) -> str:
    name = type(model).__name__
    task = next(task for task, suffix in _SUFFIX.items() if name.endswith(suffix))
    return (
        f"## Loading\n\ntransformers has no `{name}`. This model is the language model's layers with a linear head, "
        f"`score`, on the last hidden state:\n\n```python\nfrom strop.model import load_model\n\n"
        f'model = load_model("path/or/id", task="{task}")\n```'
    )
