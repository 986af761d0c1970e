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
                "    return draw(warped, torch.tensor(uniforms, dtype=torch.float64).to(warped.device))\n",
                "    ids, _ = draw(warped, torch.tensor(uniforms, dtype=torch.float64).to(warped.device))\n"
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
                "            sampled.completions[i],\n",
                "            [\n"
                "                tokenizer(text, add_special_tokens=False)['input_ids']\n"
                "                for text in tokenizer.batch_decode(sampled.completions[i])\n"
                "            ],\n",
            ),
        ),
        tests=("tests/online/test_token_in_token_out.py",),
    ),
    Mutation(
        name="tool-turns-are-retokenised",
        promises=(7,),
        history="After a tool's answer the whole conversation was rendered and tokenised anew (trl#5224, agent loops).",
        edits=(
            Edit(
                "rollout/turns.py",
                "            trajectory.write(ids, logps)\n",
                "            text = self.tokenizer.decode(ids)\n"
                "            ids = self.tokenizer(text, add_special_tokens=False)['input_ids']\n"
                "            trajectory.write(ids, (list(logps) + [0.0] * len(ids))[: len(ids)])\n",
            ),
        ),
        tests=("tests/rollout/test_turns.py::test_a_turn_keeps_the_spelling_that_was_sampled",),
    ),
    Mutation(
        name="tool-answers-are-learned",
        promises=(4, 7),
        history="Tokens that a tool wrote were trained on as if the model had written them (agent loops without a mask).",
        edits=(
            Edit(
                "rollout/turns.py",
                "        self.mask += [int(logps is not None)] * len(ids)\n",
                "        self.mask += [1] * len(ids)\n",
            ),
        ),
        tests=("tests/rollout/test_turns.py::test_a_tool_turn_is_masked_and_the_sampled_ids_are_kept",),
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
                "                self.client.abort()\n                raise _as_rollout_error(failed.exception())\n",
                "                raise _as_rollout_error(failed.exception())\n",
            ),
        ),
        tests=("tests/rollout/test_vllm_server.py::test_one_failure_ends_all_requests",),
    ),
)
