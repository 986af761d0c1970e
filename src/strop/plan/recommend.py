"""Which method fits: from the columns of the rows, and from what else a person has.

The rows decide what can be learned at all, and the answers decide between the methods that remain:

    prompt + steps + labels            -> PRM
    chosen / rejected                  -> DPO      (ORPO where memory is short; Reward to make a judge of them)
    completion + true / false          -> KTO      (BCO where prompts of the two classes differ)
    prompt + completion, messages      -> SFT      (GKD with a teacher)
    text                               -> SFT
    prompt alone                       -> GRPO with a verifier or reward (PPO, RLOO, OnlineDPO), GKD with a teacher

Nothing here knows how large a model is: whether a run fits a card is another question.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from strop.data import DatasetKind
from strop.errors import ConfigError, did_you_mean
from strop.methods.registry import BY_VERB

HAVE = {
    "reward": "a function or model that scores one completion",
    "verifier": "a program that says whether an answer is right",
    "judge": "a judge that says which of two completions is better",
    "teacher": "a larger model with the same tokenizer",
    "steps": "labels for the single steps of solutions",
}
"""What else may be at hand, and what is meant by it."""

SMALL_GPU_GB = 40.0
"""Below this a model of a few billion parameters is trained through an adapter."""


@dataclass(frozen=True)
class Choice:
    """A method, and why it is the one."""

    verb: str
    reason: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()  # flags that a person must fill in


@dataclass(frozen=True)
class Recommendation:
    """A first choice, the next best, and what would open the other branches."""

    first: Choice
    runner_up: Choice | None
    others: tuple[str, ...]  # sentences: what another branch would need


def recommend(kind: DatasetKind | str, have: Collection[str] = (), *, gpu_gb: float | None = None) -> Recommendation:
    """The method that rows of a kind are best learned with.

    Args:
        kind: what the rows are (`strop.data.detect`).
        have: names of `HAVE` that are at hand.
        gpu_gb: memory of the card in GB; None: not said.

    Raises:
        ConfigError: a name in `have` that is not known; or rows of prompts with nothing to learn from.
    """
    kind = DatasetKind(kind)
    check_have(have)
    choices = CHOICES[kind](set(have), gpu_gb is not None and gpu_gb < SMALL_GPU_GB)
    if not choices:
        raise ConfigError(
            "The rows are prompts alone, and nothing says what a good answer is. Say what you have: "
            + "; ".join(f"--have {name} ({HAVE[name]})" for name in ("verifier", "reward", "judge", "teacher"))
            + ". Or add a column: completion (then SFT), chosen and rejected (then DPO)."
        )
    return Recommendation(choices[0], choices[1] if len(choices) > 1 else None, tuple(branches(kind, set(have))))


def check_have(have: Collection[str]) -> None:
    """Refuse names that are not known, all of them together."""
    if unknown := [name for name in have if name not in HAVE]:
        problems = [f"--have {name}: not known.{did_you_mean(name, HAVE)}" for name in unknown]
        raise ConfigError.collect(f"--have takes {', '.join(HAVE)}:", problems)


def _pairs(have: set[str], short: bool) -> list[Choice]:
    dpo = Choice(
        "dpo",
        "Pairs say which answer is better; DPO learns that directly, and the reference keeps the model near its start.",
        {"beta": 0.1},
    )
    orpo = Choice(
        "orpo",
        "It learns from the same pairs without a reference model, and teaches the chosen answers at the same time.",
    )
    reward = Choice(
        "reward",
        "A reward model made of these pairs scores new answers, so that an online method can go on from it.",
    )
    ordered = [orpo, dpo] if short else [dpo, orpo]
    return [reward, *ordered] if "reward" not in have and "judge" in have else [*ordered, reward]


def _labelled(have: set[str], short: bool) -> list[Choice]:
    return [
        Choice("kto", "Each answer is marked good or bad on its own, and KTO needs no pairs.", {"beta": 0.1}),
        Choice("bco", "A classifier between good and bad; its weights help where the prompts of both differ in kind."),
    ]


def _demonstrations(have: set[str], short: bool) -> list[Choice]:
    sft = Choice("sft", "The rows show what to say; SFT learns to say it.")
    if "teacher" not in have:
        return [sft]
    gkd = Choice(
        "gkd",
        "A teacher gives a whole distribution for every token, on the student's own answers too.",
        {"lmbda": 0.5},
        ("teacher_model",),
    )
    return [gkd, sft]


def _prompts(have: set[str], short: bool) -> list[Choice]:
    reward = ("reward_funcs",)
    choices = []
    if have & {"verifier", "reward"}:
        word = "A verifier scores" if "verifier" in have else "A reward scores"
        grpo = Choice(
            "grpo",
            f"{word} sampled answers, and GRPO compares those of one prompt with each other: no critic to train.",
            {"num_generations": 8},
            reward,
        )
        rloo = Choice("rloo", "As GRPO, with an unbiased baseline and a KL penalty in the reward.", {}, reward)
        ppo = Choice("ppo", "A critic gives credit to single tokens; the most memory, the most to tune.", {}, reward)
        choices += [grpo, rloo] if short else [grpo, rloo, ppo]
    if "judge" in have:
        online = Choice(
            "online-dpo", "A judge picks the better of two samples, and DPO learns from the pair.", {}, reward
        )
        nash = Choice("nash-md", "A judge compares the policy with a mixture of itself and its start.", {}, reward)
        choices += [online, nash]
    if "teacher" in have:
        choices.append(
            Choice(
                "gkd",
                "A teacher corrects the student's own answers, token by token.",
                {"lmbda": 1.0},
                ("teacher_model",),
            )
        )
    return choices


def _steps(have: set[str], short: bool) -> list[Choice]:
    prm = Choice("prm", "Every step has its label, so a model can learn to say where a solution goes wrong.")
    kto = Choice("kto", "Steps joined to whole answers are labelled answers: good where every step is.")
    return [prm, kto]


CHOICES = {
    DatasetKind.PREFERENCE: _pairs,
    DatasetKind.UNPAIRED_PREFERENCE: _labelled,
    DatasetKind.LANGUAGE_MODELING: _demonstrations,
    DatasetKind.PROMPT_COMPLETION: _demonstrations,
    DatasetKind.TOKENIZED: _demonstrations,
    DatasetKind.PROMPT_ONLY: _prompts,
    DatasetKind.STEPWISE: _steps,
}
"""A kind of rows -> its methods, best first, given what is at hand and whether memory is short."""

BRANCHES = {
    DatasetKind.PREFERENCE: "preference pairs (chosen, rejected): DPO, ORPO, CPO, Reward",
    DatasetKind.UNPAIRED_PREFERENCE: "a column label, true or false, beside prompt and completion: KTO, BCO",
    DatasetKind.STEPWISE: "steps with labels (prompt, completions, labels): PRM",
}


def branches(kind: DatasetKind, have: set[str]) -> Sequence[str]:
    """What the branches that were not taken would need."""
    lines = [text for other, text in BRANCHES.items() if other is not kind]
    if not have & {"reward", "verifier"}:
        lines.append("a reward or a verifier (--have reward, --have verifier): GRPO, RLOO, PPO on the prompts")
    if "judge" not in have:
        lines.append("a judge of pairs (--have judge): OnlineDPO, NashMD, XPO")
    if "teacher" not in have:
        lines.append("a teacher (--have teacher): GKD")
    brought = [method for method in BY_VERB.values() if method.home and method.kind == kind]
    return [*lines, *(f"nothing more: {method.verb}, {method.summary}" for method in brought)]


def settings_for(choice: Choice, *, dataset: str, output_dir: str, gpu_gb: float | None) -> dict[str, Any]:
    """A config file's content that runs as it is, once MODEL and what the method needs are filled in."""
    settings: dict[str, Any] = {"model": "MODEL", "dataset": dataset, "output_dir": output_dir}
    settings |= {name: name.upper() for name in choice.needs}
    if gpu_gb is not None and gpu_gb < SMALL_GPU_GB:
        settings["lora"] = True
        if gpu_gb < SMALL_GPU_GB / 2:
            settings["load_in_4bit"] = True
    return settings | dict(choice.settings)
