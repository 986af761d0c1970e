"""Rewards: completion -> score. Functions, models, judges, verifiers, behind one call that cannot break a run.

    from strop.rewards import RewardSet, accuracy_reward
    table = RewardSet([accuracy_reward], on_error="skip").score(prompts, completions, completion_ids, columns)

    scorer, table, resolve            the call, its answer, and what may be passed as a reward
    contract, request, invoke         what a function is given, what it may return, and calling it
    ray_reward                        a function in actors of a Ray cluster
    calls, row_search                 where a function runs; which row of a failed batch is to blame
    watchdog, watchdog_process        a process outside that names the reward which hangs or ends the run
    isolation, worker                 a killable process per function, seen from outside and inside
    model_reward, process_reward      reward models: one score, or one per step
    reward_tokens, reading            their inputs as ids, and as batches
    judges, judge_reward              pairwise judges, and a judge as a reward
    language_model_judge, endpoint_judge
    verifiers, accuracy, gym_scores   rewards from the text alone
    code_tests, code_execution       rewards from running code
    sandbox/                         the wall around such code, and the tests outside of it

Everything is loaded on first use; importing this package, or a verifier, does not import torch.
"""

from __future__ import annotations

from strop.lazy import on_first_use

_HOMES: dict[str, tuple[str, ...]] = {
    "scorer": ("RewardSet",),
    "table": ("RewardCounts", "RewardTable"),
    "verifiers": (
        "exact_match_reward",
        "get_length_reward",
        "get_repetition_penalty_reward",
        "get_soft_overlong_punishment",
        "length_reward",
        "think_format_reward",
    ),
    "accuracy": ("accuracy_reward", "get_cosine_scaled_reward", "reasoning_accuracy_reward"),
    "gym_scores": ("reasoning_gym_reward",),
    "code_tests": ("code_reward", "get_code_reward"),
    "code_execution": ("Execution", "run_code"),
    "model_reward": ("ModelReward",),
    "process_reward": ("ProcessReward",),
    "judges": ("Judge", "RandomJudge", "RankJudge", "RewardModelJudge", "RuleJudge"),
    "judge_reward": ("JudgeReward",),
    "language_model_judge": ("LanguageModelJudge",),
    "endpoint_judge": ("EndpointJudge",),
    "ray_reward": ("RayReward",),
}

__all__, __getattr__, __dir__ = on_first_use(__name__, _HOMES)
