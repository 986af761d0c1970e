"""Bugs of sampling while the policy learns: which weights wrote what, and what a checkpoint holds of it."""

from __future__ import annotations

from proof.mutation import Edit, Mutation

CONVERSATIONS = "tests/online/test_conversations_ahead.py"

MUTATIONS = (
    Mutation(
        name="version-recorded-when-learned-from",
        promises=(15,),
        history="A completion sampled ahead carries the weights that it is learned under, not those that wrote it.",
        edits=(
            Edit(
                "methods/policy_gradient.py",
                "version=group.version)",
                "version=group.version and self.state.global_step)",
            ),
        ),
        tests=("tests/online/test_ahead.py::test_every_tree_carries_the_weights_that_wrote_it",),
    ),
    Mutation(
        name="older-weights-not-corrected",
        promises=(15,),
        history="Completions of older weights are learned from as if the policy had just written them.",
        edits=(
            Edit(
                "settings/off_policy.py",
                'away = self.engine == "vllm" or self.max_staleness > 0',
                'away = self.engine == "vllm"',
            ),
        ),
        tests=("tests/online/test_ahead.py::test_completions_of_older_weights_are_weighted",),
    ),
    Mutation(
        name="completions-weighted-by-their-last-token",
        promises=(15,),
        history="RLOO's weight for older weights is the product over a completion's tokens; one token's is not enough.",
        edits=(
            Edit(
                "losses/sampler_correction.py",
                "    gap = segment_sum(known_gap(old_logps, sampler_logps), segment, num_completions)  # (S,)\n",
                "    gap = known_gap(old_logps, sampler_logps)\n"
                "    gap = gap.new_zeros(num_completions).index_copy(0, segment, gap)\n",
            ),
        ),
        tests=("tests/online/test_ahead.py::test_rloo_weighs_a_completion_by_all_of_its_tokens",),
    ),
    Mutation(
        name="weights-read-when-they-are-sent",
        promises=(15,),
        history="Weights for a sampler are taken when its turn comes, in the middle of the optimizer's next step.",
        edits=(
            Edit(
                "rollout/own_process.py",
                '        return partial(self._ask, "load", packed(self._trained.since(self.model)), torch.get_num_threads())\n',
                '        return lambda: self._ask("load", packed(self._trained.since(self.model)), torch.get_num_threads())\n',
            ),
        ),
        tests=("tests/rollout/test_own_process.py",),
    ),
    Mutation(
        name="rewards-asked-for-a-run-that-has-ended",
        promises=(15,),
        history="Rewards were asked for completions that were sampled ahead when the run had ended already.",
        edits=(
            Edit(
                "online/ahead.py",
                "            if ended.is_set():\n",
                "            if False:\n",
            ),
        ),
        tests=("tests/online/test_ahead.py::test_rewards_are_not_asked_for_a_run_that_has_ended",),
    ),
    Mutation(
        name="parts-divided-by-the-last-ones-count",
        promises=(1,),
        history="A step that is learned from in parts is divided by the tokens of its last part.",
        edits=(
            Edit(
                "online/in_parts.py",
                "divide(model, whole, max(counts[per], 1.0))",
                "divide(model, whole, max(trainer.counts(trees)[per], 1.0))",
            ),
        ),
        tests=("tests/online/test_in_parts.py::test_the_gradient_is_that_of_the_whole_step",),
    ),
    Mutation(
        name="rounds-ahead-left-out-of-a-checkpoint",
        promises=(6,),
        history="What was sampled ahead is in no checkpoint, and the resumed run samples it from newer weights.",
        edits=(
            Edit(
                "online/trainer.py",
                "ahead = [] if self.ahead is None else self.ahead.state()",
                "ahead: list[Any] = []",
            ),
        ),
        tests=("tests/online/test_ahead.py::test_a_run_that_is_gone_on_with_learns_from_what_was_sampled_ahead",),
    ),
    Mutation(
        name="ppo-takes-older-weights-for-its-own",
        promises=(15, 18),
        history="PPO learned from completions of older weights as if the policy had just written them.",
        edits=(
            Edit(
                "methods/ppo.py",
                'sampler_logps=token_field(batch, "sampler_logps").to(old_logps) if weigh else None, **weigh,',
                "**weigh,",
            ),
        ),
        tests=("tests/online/test_ahead_by_hand.py::test_ppo_weighs_the_policy_term_and_not_the_critic",),
    ),
    Mutation(
        name="ppo-clips-around-the-sampler",
        promises=(15, 18),
        history="Ratios were clipped around the weights that sampled, and not around those at the start of the update, so that "
        "stale completions were clipped before anything had moved (arXiv 2110.00641, section 1).",
        edits=(
            Edit(
                "methods/ppo.py",
                "token_lists(batch, old_logps=scores.logps, old_values=scores.values, token_rewards=rewards)",
                'said = token_field(batch, "sampler_logps").to(scores.logps)\n'
                "        token_lists(batch, old_logps=said, old_values=scores.values, token_rewards=rewards)",
            ),
        ),
        tests=("tests/online/test_ahead_by_hand.py::test_ppo_weighs_the_policy_term_and_not_the_critic",),
    ),
    Mutation(
        name="given-rounds-sampled-ahead",
        promises=(6, 15),
        history="Whether a round ahead learns from the student's completions was decided by the round in progress.",
        edits=(Edit("methods/gkd.py", "student = self.on_policy(moment)", "student = self.on_policy(self.rounds)"),),
        tests=("tests/online/test_ahead_methods.py::test_rounds_on_given_completions_sample_nothing",),
    ),
    Mutation(
        name="a-judge-of-pairs-asked-of-single-completions",
        promises=(15,),
        history="Ahead, rewards were asked by a path of its own, which knew nothing of judges that compare two completions.",
        edits=(
            Edit(
                "online/ahead.py",
                "log.add(trainer.ask(groups, state))",
                "log.add(__import__('strop.online.trainer', fromlist=['x']).OnlineTrainer.ask(trainer, groups, state))",
            ),
        ),
        tests=("tests/online/test_ahead_methods.py::test_a_judge_of_pairs_is_asked_of_pairs_in_the_order_of_rounds",),
    ),
    Mutation(
        name="opponent-ahead-drawn-from-the-policy",
        promises=(15,),
        history="The process that samples ahead drew the reference's completions from its copy of the policy.",
        edits=(
            Edit(
                "rollout/own_process.py",
                "sampling, None if mixture is None else mixture.weight)",
                "sampling)",
            ),
        ),
        tests=("tests/rollout/test_own_process.py::test_it_samples_from_its_own_copy_of_the_reference",),
    ),
    Mutation(
        name="opponents-said-to-be-of-the-policy",
        promises=(15,),
        history="samples.jsonl gave the completions of the reference a version of the policy's weights.",
        edits=(
            Edit(
                "online/groups.py",
                "if group.version is not None and (group.own is None or i < group.own):",
                "if group.version is not None:",
            ),
        ),
        tests=("tests/online/test_ahead_methods.py::test_every_tree_carries_the_weights_that_wrote_it",),
    ),
    Mutation(
        name="environments-played-again-before-they-are-rewarded",
        promises=(15, 28),
        history="The next round ahead resets the environments that the rewards of this one are about to look at.",
        edits=(
            Edit(
                "agents/environments.py",
                "        self._set = 1 - self._set\n        if (kept := self._kept[self._set]) is not None:\n",
                "        if (kept := None) is not None:\n",
            ),
        ),
        tests=(f"{CONVERSATIONS}::test_rewards_see_the_environments_that_their_completions_had",),
    ),
    Mutation(
        name="rollout-function-samples-from-weights-that-move",
        promises=(15,),
        history="A rollout function beside the optimizer is given the model, and samples from half of a step.",
        edits=(
            Edit(
                "online/ahead.py",
                "return engine, TrainerMeanwhile(self.trainer, engine)",
                "return engine, self.trainer",
            ),
        ),
        tests=(f"{CONVERSATIONS}::test_what_learns_meanwhile_is_not_shown_to_a_rollout_function",),
    ),
    Mutation(
        name="conversations-ahead-saved-without-their-masks",
        promises=(6,),
        history="A round ahead of conversations came back from a checkpoint with what tools said as the model's own words.",
        edits=(Edit("online/kept_groups.py", '"finish_reasons", "loss_mask", ', '"finish_reasons", '),),
        tests=(f"{CONVERSATIONS}::test_a_run_that_is_gone_on_with_has_the_conversations_that_were_held_ahead",),
    ),
    Mutation(
        name="further-prompts-drawn-by-the-place-of-their-round",
        promises=(6,),
        history="Rounds that dynamic sampling takes beside the first one do not count: later ones repeat random numbers.",
        edits=(
            Edit(
                "online/ahead.py",
                "waiting.moment = first if before is None else before.moment + before.moments",
                "pass",
            ),
        ),
        tests=("tests/online/test_refill_ahead.py::test_where_weights_do_not_move_it_draws_what_strict_order_draws",),
    ),
)
