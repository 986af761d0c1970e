"""Bugs of sampling: what is sampled, with which distribution, and what becomes of the ids."""

from __future__ import annotations

from proof.mutation import Edit, Mutation

MUTATIONS = (
    Mutation(
        name="sampler-logps-of-the-raw-softmax",
        promises=(15,),
        history="Engines reported log-probs before temperature and top-p; the importance ratio was wrong (vLLM, trl#6789).",
        edits=(
            Edit(
                "rollout/draw.py",
                "    return draw(warp_logits(logits, params, history, unsure=unsure), sent(uniforms, where, dtype=torch.float64))\n",
                "    ids, _ = draw(warp_logits(logits, params, history, unsure=unsure), sent(uniforms, where, dtype=torch.float64))\n"
                "    return ids, logits.double().log_softmax(-1).gather(-1, ids[:, None])[:, 0]\n",
            ),
        ),
        tests=("tests/rollout/test_native.py::test_reported_logps_are_under_the_distribution_sampled_from",),
    ),
    Mutation(
        name="trainer-ignores-the-sampling-temperature",
        promises=(15,),
        history="Completions were sampled at one temperature and scored at another: ratios away from 1 at step 0 (trl#6789).",
        edits=(
            Edit(
                "online/trainer.py",
                'return {**super().score_options(), "temperature": self.args.temperature}',
                "return super().score_options()",
            ),
        ),
        tests=("tests/online/test_sampled_distribution.py::test_equal_weights_give_ratio_one",),
    ),
    Mutation(
        name="trainer-ignores-top-p",
        promises=(15,),
        history="The sampler cut the vocabulary, the trainer did not: the policy gradient was that of another policy.",
        edits=(
            Edit(
                "online/sampled_distribution.py",
                "return params.truncates or params.repetition_penalty != 1",
                "return params.repetition_penalty != 1",
            ),
        ),
        tests=("tests/online/test_sampled_distribution.py::test_equal_weights_give_ratio_one",),
    ),
    Mutation(
        name="dropout-while-sampling",
        promises=(9, 15),
        history="Completions were sampled in training mode, with dropout on: the sampler was not the policy.",
        edits=(
            Edit(
                "rollout/rollout_mode.py",
                "            stack.enter_context(evaluating(model))\n",
                "            stack.enter_context(torch.no_grad())\n",
            ),
        ),
        tests=("tests/rollout/test_native.py::test_dropout_is_off_while_sampling",),
        quick=True,
    ),
    Mutation(
        name="retokenised-rollouts",
        promises=(7,),
        history="Sampled ids were decoded, and the text encoded again for training: other ids than were sampled (trl#5224).",
        edits=(
            Edit(
                "online/sampling.py",
                "    lists = zip(prompts, sampled.completions, sampled.sampler_logps",
                "    read = lambda text: tokenizer(text, add_special_tokens=False)['input_ids']\n"
                "    again = [list(map(read, tokenizer.batch_decode(group))) for group in sampled.completions]\n"
                "    lists = zip(prompts, again, sampled.sampler_logps",
            ),
        ),
        tests=("tests/online/test_token_in_token_out.py",),
    ),
    Mutation(
        name="tool-turns-are-retokenised",
        promises=(7, 28),
        history="After a tool's answer the whole conversation was rendered and tokenised anew (trl#5224, agent loops).",
        edits=(
            Edit(
                "agents/conversation.py",
                "        new = self.template.prompt_ids(found.text) if tail is None else self.template.ids_of(tail)\n",
                "        new = self.template.prompt_ids(found.text)\n        forks = True\n",
            ),
        ),
        tests=("tests/agents/test_turns.py::test_a_turn_keeps_the_spelling_that_was_sampled",),
    ),
    Mutation(
        name="rewards-see-a-list-as-text",
        promises=(28,),
        history="A tool's list reached rewards as text, so TRL's grpo_agent counted every query as one without a hit.",
        edits=(
            Edit(
                "agents/turns.py",
                'told["content"] = trajectory.listed.get(told.get("tool_call_id", ""), told["content"])',
                "pass",
            ),
        ),
        tests=("tests/agents/test_turns.py::test_the_template_prints_a_list_as_text_and_rewards_see_the_list",),
    ),
    Mutation(
        name="tool-answers-are-learned",
        promises=(4, 7, 28),
        history="Tokens that a tool wrote were trained on as if the model had written them (agent loops without a mask).",
        edits=(
            Edit(
                "records.py",
                "        self.mask += [int(logps is not None)] * len(ids)\n",
                "        self.mask += [1] * len(ids)\n",
            ),
        ),
        tests=("tests/agents/test_turns.py::test_the_finished_conversation_is_the_templates_and_answers_are_masked",),
    ),
    Mutation(
        name="every-stretch-counts-as-a-completion",
        promises=(1, 28),
        history="A conversation that forked into k rows weighed k times in the mean over completions (agent loops).",
        edits=(
            Edit(
                "online/trainer.py",
                'return {**counts, "completions": counts["completions"] - later}',
                "return counts",
            ),
        ),
        tests=("tests/online/test_forks.py::test_a_forked_trajectory_counts_once",),
    ),
    Mutation(
        name="a-ratio-for-every-stretch",
        promises=(1, 28),
        history="GSPO's ratio and the mean over tokens were those of a row, not of the trajectory that it is a part of.",
        edits=(Edit("online/pieces.py", "if own is None else own, len(known)", ", len(known)"),),
        tests=("tests/online/test_forks.py::test_a_forked_trajectory_counts_once",),
    ),
    Mutation(
        name="the-reward-at-the-end-of-every-stretch",
        promises=(1, 28),
        history="PPO took each row of a conversation that had forked for a completion: its reward came k times, and no "
        "value of a later row reached an earlier one.",
        edits=(
            Edit(
                "methods/ppo.py",
                '        completions = trajectory_of(batch)\n        totals = one_each(completion_field(batch, "totals", dtype=kl.dtype), batch)',
                '        completions = scores.segment, scores.num_completions\n        totals = completion_field(batch, "totals", dtype=kl.dtype)',
            ),
            Edit(
                "methods/ppo.py",
                'gae_flat(rewards, values, *trajectory_of(batch, "cpu"), **options)',
                "gae_flat(rewards, values, batch.segment, batch.num_completions, **options)",
            ),
        ),
        tests=("tests/online/test_forks.py::test_a_critic_looks_through_all_stretches",),
    ),
    Mutation(
        name="unequal-turns-of-equal-totals-sampled-again",
        promises=(28,),
        history="Dynamic sampling looked at totals alone, and left out groups whose turns had something to learn.",
        edits=(
            Edit(
                "methods/policy_gradient.py",
                "        if self.by_turn:\n            compared = ",
                "        if False:\n            compared = ",
            ),
        ),
        tests=("tests/online/test_turn_credit.py::test_equal_totals_of_unequal_turns_are_no_reason_to_sample_again",),
    ),
    Mutation(
        name="an-end-token-doubled",
        promises=(4, 7, 28),
        history="Between turns the end of the model's turn was written again, or a header doubled (Gemma 3, GLM).",
        edits=(
            Edit(
                "agents/template.py",
                'return Following(messages, text, text[len(opened + said.text + said.end) :], "exact")',
                'return Following(messages, text, text[len(opened + said.text) :], "exact")',
            ),
        ),
        tests=("tests/agents/test_turns.py::test_an_end_token_is_never_doubled",),
    ),
    Mutation(
        name="adapters-merged-for-every-sync",
        promises=(13,),
        history=(
            "For each weight sync the adapter was merged into the base and taken out again; in bf16 the base drifted by 67 % "
            "of its mean weight in 1,000 syncs (trl#6688)."
        ),
        edits=(
            Edit(
                "rollout/vllm_engine.py",
                "        self._attempts += 1\n",
                "        self._attempts += 1\n"
                "        if self.weights.adapter is not None:\n"
                "            self.weights.model.merge_adapter()\n"
                "            self.weights.model.unmerge_adapter()\n",
            ),
        ),
        tests=("tests/rollout/test_weight_syncs.py",),
    ),
    Mutation(
        name="adapters-merged-while-sampling",
        promises=(13,),
        history="Sampling was made faster by merging the adapter for its length (trl#6688).",
        edits=(
            Edit(
                "rollout/native.py",
                "        models = [self.model] if mixture is None else [self.model, mixture.reference]\n",
                "        models = [self.model] if mixture is None else [self.model, mixture.reference]\n"
                "        if hasattr(self.model, 'merge_adapter'):\n"
                "            self.model.merge_adapter()\n"
                "            self.model.unmerge_adapter()\n",
            ),
        ),
        tests=("tests/rollout/test_weight_syncs.py",),
    ),
    Mutation(
        name="a-stalled-server-is-waited-for",
        promises=(19,),
        history="A rollout server that sends a byte now and then held the trainer for ever (trl#6797).",
        edits=(
            Edit("http_client.py", "            asyncio.timeout(timeout_s),\n", "            asyncio.timeout(None),\n"),
        ),
        tests=("tests/test_http_client.py::test_a_server_that_stalls_is_left_in_time",),
    ),
    Mutation(
        name="one-failed-request-does-not-end-the-others",
        promises=(19,),
        history="One request failed, and the trainer waited for the answers to all others before it said so (trl#6797).",
        edits=(
            Edit(
                "rollout/vllm_server.py",
                "                        client.abort()\n                    pending = wait(pending,",
                "                        pass\n                    pending = wait(pending,",
            ),
        ),
        tests=("tests/rollout/test_vllm_server.py::test_one_failure_ends_all_requests",),
    ),
    Mutation(
        name="keys-of-a-conversation-outlive-it",
        promises=(15,),
        history="Cached prefixes survived an update of the weights: completions were drawn from keys of older ones (vLLM).",
        edits=(
            Edit(
                "rollout/native.py",
                "        finally:\n            self.kept = None\n",
                "        finally:\n            pass\n",
            ),
        ),
        tests=("tests/rollout/test_beginnings.py::test_nothing_is_kept_behind_a_conversation",),
    ),
    Mutation(
        name="windows-forget-what-stands-above",
        promises=(15,),
        history="With a cached prefix the sliding window was counted from the first new token, not from the sequence's.",
        edits=(
            Edit(
                "rollout/attention.py",
                "    before = key.shape[2] - length\n",
                "    before = 0 if window is not None else key.shape[2] - length\n",
            ),
        ),
        tests=("tests/rollout/test_beginnings.py::test_common_beginnings_are_computed_once",),
    ),
)
