"""What logged metrics mean: unit, what they are averaged over, the healthy range, what to do outside of it.

Here stand those of several methods; what one method logs, or means by a shared key, its class says (`glossary`). A
range is given as numbers only where it holds for any task; elsewhere the text says what to look for. Keys are those
that scripts know; evaluation logs the same keys with `eval_` (or `eval_NAME_` for a dict of sets) in front.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from strop.metric import COMPLETIONS, DRIFT, LOGPS, LOSS, PROGRESS, REWARD, SAMPLING, TOKENS, TOOLS, Entry

# fmt: off
GLOSSARY: tuple[Entry, ...] = (
    Entry("loss", LOSS, "The training objective.", "none", "as the method says", healthy="falls, then flattens"),
    Entry("train_loss", LOSS, "Mean of the loss over the whole training.", "as loss", "step"),
    Entry(
        "grad_norm", LOSS, "Length of the gradient before clipping.", "none", "step",
        healthy="steady; rare spikes are clipped",
        advice=(
            "Exactly 0: nothing is learned. Growing: lower the learning rate. Always above max_grad_norm: every step "
            "is clipped."
        ),
    ),
    Entry("learning_rate", LOSS, "Learning rate of the step.", "none", "step"),
    Entry("nll_loss", LOSS, "Negative log-likelihood of the chosen completions.", "nats", "token", healthy="falls"),
    Entry(
        "exponent_clamped_ratio", LOSS,
        "Share of pairs whose exponential loss is beyond e^30, where it goes on as a straight line.", "share", "pair",
        high=0.01, healthy="0", advice="Above 0: lower beta or the learning rate, or use the sigmoid loss of DPO.",
    ),
    Entry(
        "aux_loss", LOSS, "Load-balancing loss of a mixture-of-experts router.", "none", "step",
        healthy="flat, near 1 for balanced experts", advice="Rising: raise router_aux_loss_coef.",
    ),
    Entry(
        "reward", REWARD, "Weighted sum of all reward functions.", "reward", "completion", healthy="rises",
        advice=(
            "Flat: look at frac_reward_zero_std and at samples. Rises while samples get worse: the reward is being "
            "gamed."
        ),
    ),
    Entry(
        "reward_std", REWARD, "Spread of the rewards among the completions of one prompt.", "reward", "prompt",
        healthy="above 0", advice="0: no group has anything to compare; raise the temperature or num_generations.",
    ),
    Entry(
        "frac_reward_zero_std", REWARD,
        "Share of prompts whose completions all have the same reward: they teach nothing.", "share", "prompt", high=0.5,
        advice="High from the start: prompts are too easy or too hard. High at the end: the task is solved.",
    ),
    Entry("rewards/*/mean", REWARD, "Mean of one reward function.", "reward", "completion it scored", healthy="rises"),
    Entry(
        "rewards/*/*_fraction", REWARD,
        "Share of completions that one reward abstained from, failed on, timed out on, or was penalised for.", "share",
        "completion", high=0.1, advice="High: read the failures in the terminal, and fix the reward.",
    ),
    Entry("rewards/*/std", REWARD, "Spread of one reward function.", "reward", "completion it scored"),
    Entry(
        "rewards/chosen", REWARD,
        "Implicit reward of the chosen completion: beta times its log-ratio to the reference.", "nats * beta",
        "completion", healthy="rises, or falls less than rewards/rejected",
        advice="Falls far below 0 with rewards/rejected: likelihood displacement; add 'sft' to loss_type.",
    ),
    Entry(
        "rewards/rejected", REWARD, "Reward of the rejected completion, on the scale of rewards/chosen.", "nats * beta",
        "completion", healthy="falls",
    ),
    Entry(
        "rewards/margins", REWARD, "Chosen reward minus rejected reward.", "nats * beta", "pair", low=0,
        healthy="rises above 0",
        advice="Below 0: the model prefers the rejected side; check that the columns are not swapped.",
    ),
    Entry(
        "rewards/accuracies", REWARD,
        "Share of pairs whose chosen completion has the higher reward; ties count as wrong.", "share", "pair", low=0.5,
        high=1, healthy="0 at step 0 (every pair is a tie), then above 0.5",
        advice="1.0 at once: pairs differ in something trivial, such as length or format.",
    ),
    Entry(
        "held_out_accuracy", REWARD, "Share of held-out prompts whose greedy completion a verifier finds right.",
        "share", "prompt", healthy="rises",
    ),
    Entry(
        "objective/scores", REWARD, "Score of the reward model or functions.", "reward", "completion", healthy="rises",
    ),
    Entry(
        "objective/rlhf_reward", REWARD, "Score minus the KL penalty: what is maximised.", "reward", "completion",
        healthy="rises",
    ),
    Entry(
        "objective/non_score_reward", REWARD, "KL part of the reward: minus the coefficient times the KL.", "reward",
        "completion", high=0, advice="Larger than the score's gain: lower the KL coefficient.",
    ),
    Entry(
        "kl", DRIFT, "KL between policy and reference, estimated on sampled tokens.", "nats", "token",
        healthy="0 at step 0, grows slowly",
        advice="Jumps: lower the learning rate or raise beta. What is too far depends on the task: read samples.",
    ),
    Entry(
        "objective/kl", DRIFT, "KL between policy and reference.", "nats", "completion, summed over tokens",
        healthy="0 at step 0; several nats are normal",
        advice="Explodes, or is clearly negative: sampling and scoring disagree.",
    ),
    Entry("beta", DRIFT, "Current strength of the pull to the reference.", "none", "step"),
    Entry(
        "logps/chosen", LOGPS, "Log-probability of the chosen completion.", "nats", "completion, summed over tokens",
        healthy="steady or rising",
        advice="Falls steeply: likelihood displacement; add 'sft' to loss_type, or lower the learning rate.",
    ),
    Entry(
        "logps/rejected", LOGPS, "Log-probability of the rejected completion.", "nats",
        "completion, summed over tokens", healthy="falls",
    ),
    Entry(
        "logits/chosen", LOGPS, "Mean logit over the vocabulary at the chosen completion's tokens.", "logit", "token",
        healthy="steady",
    ),
    Entry(
        "logits/rejected", LOGPS, "Mean logit over the vocabulary at the rejected completion's tokens.", "logit",
        "token", healthy="steady",
    ),
    Entry(
        "entropy", TOKENS, "Uncertainty of the model at the tokens it is scored on.", "nats", "token",
        healthy="falls slowly",
        advice=(
            "Collapses to 0 while the reward is low: the policy stopped exploring; raise the temperature or add "
            "entropy_coef."
        ),
    ),
    Entry(
        "objective/entropy", TOKENS, "Minus the log-probability of what was sampled.", "nats",
        "completion, summed over tokens", healthy="falls slowly", advice="Collapses: the policy repeats itself.",
    ),
    Entry(
        "mean_token_accuracy", TOKENS, "Share of learned tokens that are the model's first choice.", "share", "token",
        healthy="rises",
    ),
    Entry("num_tokens", PROGRESS, "Tokens seen so far.", "tokens", "sum over the run"),
    Entry("shared_tokens", PROGRESS, "Tokens computed for each one given; above 1 if padded.", "tokens", "given token"),
    Entry("prefilled_tokens", PROGRESS, "Prompt tokens sampling computed for each one given.", "tokens", "given token"),
    Entry(
        "completions/mean_length", COMPLETIONS, "Length of the sampled completions.", "tokens", "completion",
        advice="Grows to the limit: reward length less, or punish it softly.",
    ),
    Entry("completions/min_length", COMPLETIONS, "Shortest sampled completion.", "tokens", "batch"),
    Entry("completions/max_length", COMPLETIONS, "Longest sampled completion.", "tokens", "batch"),
    Entry(
        "completions/*_terminated_length", COMPLETIONS, "The same, over completions that ended by themselves.",
        "tokens", "ended completion",
    ),
    Entry(
        "completions/clipped_ratio", COMPLETIONS, "Share of completions cut at max_completion_length.", "share",
        "completion", high=0.2, advice="High: raise max_completion_length, or set mask_truncated_completions.",
    ),
    Entry(
        "val/contain_eos_token", COMPLETIONS, "Share of completions that ended by themselves.", "share", "completion",
        low=0.8, high=1,
    ),
    Entry(
        "sampling/sampling_logp_difference/*", SAMPLING,
        "|log-probability at sampling - in training| of the same token.", "nats", "token", high=0.1,
        advice="Large: precision or sampling settings of the two engines differ.",
    ),
    Entry("sampling/kl", SAMPLING, "KL from the sampler to the policy.", "nats", "token", high=0.1),
    Entry(
        "sampling/importance_sampling_ratio/*", SAMPLING,
        "Correction weight between the sampling engine and the trainer.", "ratio", "token or completion", low=0.5,
        high=2, healthy="near 1",
    ),
    Entry(
        "staleness/*", SAMPLING, "Optimizer steps made since the weights that wrote a completion.", "steps",
        "completion", healthy="the steps of max_staleness windows",
    ),
    Entry("tools/call_frequency", TOOLS, "Calls of tools in a completion.", "calls", "completion"),
    Entry("tools/failure_frequency", TOOLS, "Share of tool calls that failed.", "share", "call", high=0.2),
    Entry("turns/mean_count", TOOLS, "Turns of the model.", "turns", "completion"),
    Entry("turns/answer_tokens", TOOLS, "Tokens of tools and environments.", "tokens", "completion"),
    Entry("turns/rolled_back", TOOLS, "Completions whose last answers did not fit.", "share", "completion", high=0.1),
    Entry("turns/forked", TOOLS, "Completions of several contexts.", "share", "completion"),
    Entry("turns/rewritten", TOOLS, "Times the past was not as it was sampled.", "times", "completion"),
    Entry("turns/failed", TOOLS, "Completions that an environment or agent lost.", "share", "completion", high=0.1),
    Entry("turns/unseen", TOOLS, "Answers that an agent did not wait for.", "answers", "completion", high=0.1),
    Entry(
        "turns/left_behind", TOOLS, "Threads of tools, environments and agents that did not end in time and still run.",
        "threads", "round", high=0, advice="Give such calls a time limit of their own, or make them async.",
    ),
    Entry("turns/respelled", TOOLS, "Turns that the template would spell otherwise.", "share", "turn"),
    Entry("epoch", PROGRESS, "Passes over the training rows.", "epochs", "run"),
    Entry(
        "step_time", PROGRESS, "Time of a step from its rows to its gradient, sampling included.", "seconds", "step",
        healthy="steady",
    ),
    Entry(
        "rows_time", PROGRESS, "Time that a step waits for its rows.", "seconds", "step",
        healthy="a small share of step_time", advice="Large: more dataloader_num_workers, or tokenised rows kept.",
    ),
    Entry("sampling_time", PROGRESS, "Time of a step in which it waits for completions.", "seconds", "step"),
    Entry(
        "rewards_time", PROGRESS, "Time of a step in which it waits for rewards.", "seconds", "step",
        healthy="a small share of step_time",
        advice="Large: a faster reward, or an async one that works on many completions at once.",
    ),
    Entry(
        "memory_peak", PROGRESS,
        "Most memory held so far: of tensors on an accelerator, of the whole process on a CPU.", "GiB",
        "running maximum", healthy="flat after the first steps",
        advice="Grows: long rows came late, or something is kept; see `strop plan`.",
    ),
    Entry("total_flos", PROGRESS, "Estimated floating-point operations so far.", "FLOP", "sum over the run"),
    Entry("train_runtime", PROGRESS, "Time of the whole training.", "seconds", "run"),
    Entry("runtime", PROGRESS, "Time of the evaluation.", "seconds", "evaluation"),
    Entry("train_*_per_second", PROGRESS, "Speed of the whole training.", "1/s", "run"),
    Entry("*_per_second", PROGRESS, "Speed of the evaluation.", "1/s", "evaluation"),
)
# fmt: on
"""Every shared entry; of several that fit a key the first one wins."""


def lookup(key: str, own: Sequence[Entry] = ()) -> Entry | None:
    """The entry of a metric key (`eval_` and `eval_NAME_` in front are ignored), None if there is none.

    `own` are the entries of the method (`strop.metric.entries_of`); they come first.
    """
    return next((e for name in _without_prefixes(key) for e in (*own, *GLOSSARY) if fnmatchcase(name, e.key)), None)


def _without_prefixes(key: str) -> Iterator[str]:
    """The key, and of an evaluation what is left without `eval_` and, word by word, the name of its rows."""
    words = key.split("_")
    for first in range(len(words) if words[0] == "eval" else 1):
        yield "_".join(words[first:])
