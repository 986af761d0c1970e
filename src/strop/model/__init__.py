"""The waist: load a model, score trees of tokens with it, keep a reference.

scores = score(load_model("model-or-folder"), [Example(prompt_ids, [chosen_ids, rejected_ids])])
scores.sum()        # (2,) log-probability of each completion
"""

from __future__ import annotations

from strop.model.dropout import disable_dropout, evaluating
from strop.model.forest import pays
from strop.model.forward import Scoring, install, score_batch
from strop.model.heads import with_head
from strop.model.layout import build_batch
from strop.model.lm_head import LMHead, lm_head_of
from strop.model.load import apply_peft, keep_differentiable, load_model, load_tokenizer
from strop.model.padding_token import ADAPTER_NOTE, note_in_card, set_scoring_pad
from strop.model.reference import AdapterCopy, AdapterOff, FrozenReference, Reference, make_reference
from strop.model.saving import as_to_save
from strop.model.scoring import score
from strop.model.select import LayoutChoice, accepted_layout, confirm_layout, layout_of
from strop.model.towers import freeze_unread_towers
from strop.model.wrappers import base_model, decoder_of, is_peft, unwrap
from strop.records import Want

__all__ = [
    "ADAPTER_NOTE",
    "AdapterCopy",
    "AdapterOff",
    "FrozenReference",
    "LMHead",
    "LayoutChoice",
    "Reference",
    "Scoring",
    "Want",
    "accepted_layout",
    "apply_peft",
    "as_to_save",
    "base_model",
    "build_batch",
    "confirm_layout",
    "decoder_of",
    "disable_dropout",
    "evaluating",
    "freeze_unread_towers",
    "install",
    "is_peft",
    "keep_differentiable",
    "layout_of",
    "lm_head_of",
    "load_model",
    "load_tokenizer",
    "make_reference",
    "note_in_card",
    "pays",
    "score",
    "score_batch",
    "set_scoring_pad",
    "unwrap",
    "with_head",
]
