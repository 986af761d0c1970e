"""DPO by hand: score pairs with the policy and with a copy of its start, and widen the difference.

python -m examples.loops.dpo
"""

from __future__ import annotations

from copy import deepcopy

import torch

from strop.losses import dpo_loss
from strop.model import score
from strop.records import Example
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

PAIRS = [("ant", " bee", " cat"), ("bee", " cat", " ant"), ("cat", " ant", " bee")]
BETA, STEPS = 0.1, 20


def trees() -> list[Example]:
    """Each prompt once, and on it the better and the worse completion."""
    ids = toy_tokenizer().encode
    return [Example(ids(prompt), [ids(chosen), ids(rejected)]) for prompt, chosen, rejected in PAIRS]


def main() -> list[float]:
    """Train for some steps; the loss of each."""
    torch.manual_seed(0)
    policy = tiny_model("llama", vocab_size=len(toy_tokenizer()))
    start = deepcopy(policy).requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    rows, losses = trees(), []

    with torch.no_grad():
        reference = score(start, rows).sum()  # log-probability of each completion: chosen, rejected, chosen, ...
    for step in range(1, STEPS + 1):
        logps = score(policy, rows).sum()
        values = dpo_loss(logps[0::2], logps[1::2], reference[0::2], reference[1::2], beta=BETA)  # one for each pair
        loss = values.mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        print(f"step {step:2d}  loss {loss.item():.4f}")
    return losses


if __name__ == "__main__":
    main()
