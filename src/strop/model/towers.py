"""Models that read more than text: rows of text train their language part, and the rest stays as it is."""

from __future__ import annotations

from torch import nn

from strop.model.wrappers import base_model, decoder_of


def freeze_unread_towers(model: nn.Module) -> list[str]:
    """Freeze the parts that no text passes through (vision and audio towers, projectors), adapters on them included.

    Their weights would get no gradient, for which processes that train together wait in vain.

    Returns:
        Names of the parts that were frozen.
    """
    inner = base_model(model)
    decoder, body = decoder_of(inner), getattr(inner, "base_model", inner)
    if decoder is body or body is inner:
        return []
    frozen = []
    for name, part in body.named_children():
        unread = [parameter for parameter in part.parameters() if parameter.requires_grad]
        if unread and decoder not in part.modules():
            frozen.append(name)
            for parameter in unread:
                parameter.requires_grad_(False)
    return frozen
