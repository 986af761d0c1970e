"""Bugs between a batch and its log-probs: positions, padding, heads, the reference."""

from __future__ import annotations

from proof.mutation import Edit, Mutation

MUTATIONS = (
    Mutation(
        name="position-ids-run-on",
        promises=(9,),
        history="Packed rows were scored without position ids of their own; GPT-2 was off by 34 nats (trl#6800).",
        edits=(
            Edit(
                "model/layout.py",
                "    position_ids = [position for node in nodes for position in range(node.start, node.stop)]\n",
                "    position_ids = list(range(len(input_ids)))\n",
            ),
        ),
        tests=(
            "tests/model/test_layout.py::test_packed_copies_the_prompt",
            "tests/model/test_forward.py::test_float64_equals_plain_rows[gpt2]",
        ),
    ),
    Mutation(
        name="packed-rows-see-each-other",
        promises=(9, 2),
        history="Attention crossed from one packed document into the next (packing without a block mask, many trainers).",
        edits=(
            Edit(
                "model/layout.py",
                "    return inputs, segments\n",
                "    return inputs, Segments([Span(0, len(input_ids))], [-1])\n",
            ),
        ),
        tests=("tests/model/test_forward.py::test_float64_equals_plain_rows[llama]",),
    ),
    Mutation(
        name="padding-is-attended-to",
        promises=(9,),
        history="Reward models scored padded batches without a mask, so a score depended on its neighbours' lengths.",
        edits=(
            Edit(
                "model/layout.py",
                "        attention_mask.append([1] * len(ids) + [0] * padding)\n",
                "        attention_mask.append([1] * len(ids) + [1] * padding)\n",
            ),
        ),
        tests=("tests/rewards/test_model_reward.py::test_an_encoder_uses_its_own_head",),
        quick=True,
    ),
    Mutation(
        name="reward-pooled-by-pad-id",
        promises=(9, 4),
        history=(
            "The last token was found by looking for the padding id; with pad = EOS the score was read one token before "
            "the end (transformers' sequence classifiers, TRL's reward trainer)."
        ),
        edits=(
            Edit(
                "rewards/model_reward.py",
                "Example([], [list(ids)]) for ids in sequences",
                "Example([], [[t for t in ids if t != self.tokenizer.pad_token_id]]) for ids in sequences",
            ),
        ),
        tests=("tests/rewards/test_model_reward.py::test_scores_are_read_at_the_last_real_token_though_pad_is_eos",),
    ),
    Mutation(
        name="judge-rebuilds-the-output-head",
        promises=(9,),
        history="The judge multiplied hidden states by the output matrix itself and dropped scale and cap of the logits.",
        edits=(
            Edit(
                "rewards/language_model_judge.py",
                "        logps = score(self.model, [Example(ids, answers) for ids in questions]).sum()  # (S * letters,)\n",
                "        from strop.model import Want\n"
                "        rows = score(self.model, [Example(ids, answers) for ids in questions], want=Want.HIDDEN).hidden\n"
                "        drawn = torch.tensor([*a, *b] * len(questions))[:, None]\n"
                "        logps = self._inner.get_output_embeddings()(rows).gather(1, drawn)[:, 0]\n",
            ),
        ),
        tests=(
            "tests/rewards/test_language_model_judge.py::test_the_letters_are_as_probable_as_the_model_says[cohere]",
        ),
    ),
    Mutation(
        name="reward-that-is-trained",
        promises=(8,),
        history="One object was given as PPO's reward and as its value model, so the reward was trained as a critic.",
        edits=(
            Edit(
                "engine/refusals.py",
                "    if any(id(parameter) in trained for parameter in other.parameters()):\n",
                "    if not any(True for parameter in other.parameters()):\n",
            ),
        ),
        tests=("tests/engine/test_shared_weights.py::test_a_reward_that_is_the_critic_is_refused",),
    ),
    Mutation(
        name="reference-keeps-trained-biases",
        promises=(8, 26),
        history="Adapter off kept biases, norms and embeddings that were trained beside it, so the reference moved (trl#6975).",
        edits=(
            Edit(
                "model/beside_adapter.py",
                "                parameter.data = start\n            yield\n",
                "                parameter.data = parameter.data\n            yield\n",
            ),
        ),
        tests=(
            "tests/engine/test_reference_scores.py::"
            "test_what_is_trained_beside_an_adapter_does_not_move_the_reference[biases]",
        ),
    ),
    Mutation(
        name="asked-for-layout-unchecked",
        promises=(9, 27),
        history="layout='packed' was taken at its word: rows of BLOOM, GPT-J or Jamba saw one another, nats apart.",
        edits=(
            Edit(
                "model/select.py",
                '    if asked in FLAT_LAYOUTS and name == "padded":\n',
                "    if asked in ():\n",
            ),
        ),
        tests=("tests/model/test_select.py::test_a_layout_that_leaks_between_rows_is_refused[packed]",),
    ),
    Mutation(
        name="padded-rows-forget-the-own-head",
        promises=(9, 27),
        history="layout='padded' read log-probs without the model's own cap on its logits (RecurrentGemma, 0.07 nats).",
        edits=(
            Edit(
                "model/scoring.py",
                "        own_head=layout_of(model).own_head,\n",
                '        own_head=layout == "auto" and layout_of(model).own_head,\n',
            ),
        ),
        tests=("tests/model/test_select.py::test_the_padded_layout_keeps_a_models_own_head",),
    ),
    Mutation(
        name="reference-in-another-precision",
        promises=(8, 26),
        history="Mixed precision surrounded the policy's forward only: DPO began at 0.69234 and PPO's first KL was 0.23.",
        edits=(
            Edit(
                "engine/step_trainer.py",
                "        with self.accelerator.autocast():\n            scores = scoring(*args, **options)\n",
                "        scores = scoring(*args, **options)\n",
            ),
        ),
        tests=("tests/engine/test_reference_scores.py::test_policy_and_reference_are_scored_in_one_precision[full-]",),
    ),
    Mutation(
        name="reward-trained-one-token-early",
        promises=(9, 4),
        history="The reward head was trained on the state before the last token, as log-probs are (an off-by-one of pooling).",
        edits=(
            Edit(
                "model/layout.py",
                '"last": [item.places[-1] if',
                '"last": [item.places[-2] if',
            ),
        ),
        tests=("tests/engine/test_oracle.py::test_reward_scores_the_last_token_of_each_side",),
    ),
    Mutation(
        name="logits-of-the-prompt-too",
        promises=(21,),
        history="The head ran over prompt and padding, whose logits nobody reads (axolotl#1813).",
        edits=(
            Edit(
                "model/forward.py",
                "        out |= _head_scores(model, rows, scoring)\n",
                "        lm_head_of(model).module(hidden)\n        out |= _head_scores(model, rows, scoring)\n",
            ),
        ),
        tests=(
            "tests/model/test_forward.py::test_no_tensor_of_prompt_times_vocabulary_and_none_beyond_the_budget[llama-False]",
        ),
    ),
    Mutation(
        name="reference-is-the-policy",
        promises=(8,),
        history="The reference shared its weights with the policy and moved along: the KL stayed 0.",
        edits=(
            Edit(
                "model/reference.py",
                "        with torch.no_grad():\n            yield self.model\n",
                "        with torch.no_grad():\n            yield self._policy\n",
            ),
        ),
        tests=("tests/model/test_reference.py::test_first_kl_is_exactly_zero_and_training_does_not_move_it",),
        quick=True,
    ),
    Mutation(
        name="adapter-left-on",
        promises=(8,),
        history="The reference of a LoRA policy is the model with the adapter off; fused paths lost that (trl#7059).",
        edits=(
            Edit(
                "model/reference.py",
                "            stack.enter_context(self._policy.disable_adapter())\n",
                "",
            ),
        ),
        tests=("tests/model/test_reference.py::test_first_kl_is_exactly_zero_and_training_does_not_move_it",),
    ),
    Mutation(
        name="trained-adapter-compared-with-the-base",
        promises=(8,),
        history="Training on from an SFT adapter took the bare base model as reference, not base + adapter (trl#1340).",
        edits=(Edit("model/reference.py", " if adds_nothing(policy) and not syncs else ", " if not syncs else "),),
        tests=("tests/model/test_reference.py::test_first_kl_is_exactly_zero_and_training_does_not_move_it",),
    ),
    Mutation(
        name="another-adapter-scored-by-the-same-log-probs",
        promises=(8,),
        history="Kept log-probs of the reference were found by a hash that left its adapter out.",
        edits=(
            Edit(
                "engine/reference_scores.py",
                'if not idle.intersection(name.split(".")):',
                'if not idle.intersection(name.split(".")) and "lora" not in name:',
            ),
        ),
        tests=("tests/engine/test_several_adapters.py::test_kept_log_probs_belong_to_one_adapter",),
    ),
    Mutation(
        name="adapters-beside-the-trained-one-move",
        promises=(8,),
        history="Of two adapters that were loaded to be trained, the idle one was decayed with the active one.",
        edits=(Edit("model/adapters.py", "            parameter.requires_grad_(False)\n", "            pass\n"),),
        tests=("tests/engine/test_several_adapters.py::test_only_the_active_adapter_learns",),
    ),
    Mutation(
        name="dropout-in-the-reference",
        promises=(8, 9),
        history="The reference was scored in training mode, so its log-probs were a draw of dropout (early DPO trainers).",
        edits=(
            Edit(
                "model/reference.py",
                "        with torch.no_grad(), evaluating(self._policy), _same_requires_grad(self._policy), "
                "self._kept.in_place():\n"
                "            self._policy.set_adapter(self._name, inference_mode=True)\n",
                "        with torch.no_grad(), _same_requires_grad(self._policy), self._kept.in_place():\n"
                "            self._policy.set_adapter(self._name, inference_mode=True)\n",
            ),
        ),
        tests=("tests/model/test_reference.py::test_dropout_of_the_policy_does_not_reach_the_reference",),
    ),
    Mutation(
        name="gradient-of-a-part-of-the-merge",
        promises=(9, 32),
        history="Two attention results were merged, but the backward of one got its own log-sum-exp and not the merged one.",
        edits=(
            Edit(
                "model/attention_cuda.py",
                "            lse[:, call.queries] = merged\n",
                "            pass\n",
            ),
        ),
        tests=("tests/model/test_attention_cuda.py::test_calls_and_merge_are_the_dense_attention",),
    ),
    Mutation(
        name="gradient-without-the-last-ancestor",
        promises=(9,),
        history="A token with two ancestors kept the log-sum-exp of the first merge for its backward.",
        edits=(
            Edit(
                "model/attention_cpu.py",
                "            lse[:, :, queries.slice] = merged\n",
                "            lse[:, :, queries.slice] = merged if keys.start == 0 else before\n",
            ),
        ),
        tests=("tests/model/test_attention.py::test_cpu_kernel_equals_dense",),
    ),
    Mutation(
        name="a-shared-scored-token-learned-once",
        promises=(1, 9),
        history="A scored token that several rows share got the gradient of one of them (prefix-merged training).",
        edits=(
            Edit(
                "model/forward.py",
                "    return out | spread\n",
                "    once = torch.zeros(len(batch.alike), 1, device=batch.alike.device).index_fill(0, batch.distinct, 1.0)\n"
                "    for name in {'logps', 'hidden'} & spread.keys():\n"
                "        part = once.to(spread[name]).reshape(-1, *[1] * (spread[name].dim() - 1))\n"
                "        spread[name] = spread[name] * part + spread[name].detach() * (1 - part)\n"
                "    return out | spread\n",
            ),
        ),
        tests=(
            "tests/model/test_forest.py::test_a_scored_token_of_several_rows_is_computed_once_and_weighs_as_all",
            "tests/model/test_forest.py::test_float64_equals_plain_rows[llama]",
        ),
    ),
    Mutation(
        name="noise-of-a-neighbours-length",
        promises=(9,),
        history="NEFTune's noise on a common beginning had the length of whichever row of the batch was longest.",
        edits=(
            Edit(
                "engine/step_trainer.py",
                "        shares = None if self.args.neftune_noise_alpha else pays\n",
                "        shares = pays\n",
            ),
        ),
        tests=("tests/engine/test_shared_tokens.py::test_noise_is_drawn_for_each_row",),
    ),
    Mutation(
        name="a-self-test-that-accepts-half-of-the-scale",
        promises=(9, 32),
        history="A start-up check of a kernel allowed 100 units of precision, 0.78 in bfloat16, and saw no fault at all.",
        edits=(
            Edit(
                "model/attention.py",
                "BOUND_HALF, BOUND_WIDE = 4, 16\n",
                "BOUND_HALF, BOUND_WIDE = 100, 100\n",
            ),
        ),
        tests=("tests/model/test_attention.py::test_the_self_test_finds_faults_in_any_precision",),
    ),
    Mutation(
        name="a-saved-reward-model-pads-with-eos",
        promises=(9, 29),
        history="A saved reward model named EOS its pad token, and transformers scored the token before it (trl#368).",
        edits=(
            Edit(
                "model/padding_token.py",
                "number is not None and number not in ends)\n",
                "number is not None)\n",
            ),
        ),
        tests=("tests/engine/test_saved_scores.py::test_a_saved_reward_model_scores_the_same_elsewhere",),
    ),
    Mutation(
        name="a-made-class-reloads-with-empty-buffers",
        promises=(9, 29),
        history="A reward model of Falcon-H1 scored every text 0 after loading: its multipliers are a buffer not saved.",
        edits=(
            Edit(
                "model/headed.py",
                '{"__module__": causal.__module__}',
                '{"__module__": __name__}',
            ),
        ),
        tests=(
            "tests/model/test_headed.py::test_a_head_is_the_linear_map_of_the_last_states_and_survives_saving[falcon_h1-score]",
        ),
    ),
    Mutation(
        name="weights-beside-an-adapter-left-behind",
        promises=(11, 23),
        history="Norms unfrozen beside LoRA were trained and in no checkpoint: PEFT saves what adapters own.",
        edits=(
            Edit(
                "model/beside_adapter.py",
                "    if weights := beside_adapter(model):\n",
                "    if not (weights := beside_adapter(model)):\n",
            ),
            Edit(
                "model/beside_adapter.py",
                "    odd += [name for name in beside_adapter(model) if name not in saved]\n",
                "",
            ),
        ),
        tests=("tests/engine/test_beside_adapter.py::test_they_come_again",),
    ),
)
