"""Every loss: its formula as its docstring states it, and its value on the vectors that the tests hold it to."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import strop.losses
from pages.markdown import docstring, table

VECTORS = Path(__file__).resolve().parents[1] / "tests" / "vectors.json"
LOSSES = {
    "SFT": (("nll_loss", "dft_loss"), ("sft_",)),
    "Reward": (("reward_loss",), ("reward_",)),
    "DPO": (("dpo_loss", "aot_loss", "wpo_weights", "ld_logps"), ("dpo_",)),
    "KTO": (("kto_loss", "kto_reference_point"), ("kto_",)),
    "ORPO": (("orpo_loss",), ("orpo_",)),
    "CPO, SimPO, AlphaPO": (("cpo_loss", "contrastive_hidden_loss"), ("cpo_", "simpo_", "alphapo_")),
    "BCO": (("bco_loss", "ema_balanced"), ("bco_",)),
    "PPO": (("token_rewards", "gae", "whiten", "value_loss"), ("ppo_",)),
    "GRPO and its kin": (("policy_loss", "group_advantages", "multi_reward_advantages"),
                         ("grpo_", "gspo_", "cispo_", "sapo_", "vespo_", "luspo_")),
    "RLOO": (("rloo_loss", "leave_one_out"), ("rloo_",)),
    "Nash-MD": (("nash_md_loss", "geometric_mixture_logps"), ("nash",)),
    "XPO": (("xpo_loss",), ("xpo_",)),
    "GKD": (("jsd_loss",), ("gkd_", "jsd_")),
    "PRM": (("stepwise_loss",), ("prm_",)),
}  # fmt: skip

INTRODUCTION = """# The mathematics

Formulas are those of the functions in `strop.losses`, which take tensors and know neither model nor data. Beside each
stand values on small made-up log-probs; the tests hold every function to them, value and gradient, in float64 to 1e-9.
Where a loss has several rows, the name says the variant and its options.
"""


def page() -> str:
    """The page as Markdown, a section for each family of losses."""
    vectors = json.loads(VECTORS.read_text(encoding="utf-8"))
    sections = [INTRODUCTION]
    for family, (functions, prefixes) in LOSSES.items():
        sections.append(f"## {family}")
        sections += [section(name) for name in functions]
        rows = [
            (f"`{name}`", f"{vector['loss']:.10g}")
            for name, vector in vectors.items()
            if name.startswith(prefixes) and isinstance(vector, dict) and isinstance(vector.get("loss"), float)
        ]
        if rows:
            sections.append(table(("on the made-up log-probs", "loss"), rows))
    return "\n\n".join(sections) + "\n"


def section(name: str) -> str:
    """A function: its signature, and what it says of itself."""
    function = getattr(strop.losses, name)
    signature = str(inspect.signature(function)).replace("'", "")
    return f"### `{name}`\n\n```python\n{name}{signature}\n```\n\n{docstring(function.__doc__)}"
