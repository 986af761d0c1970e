"""Bugs of whole runs: steps, settings, checkpoints, metrics."""

from __future__ import annotations

from proof.mutation import Edit, Mutation

MUTATIONS = (
    Mutation(
        name="batch-statistics-of-a-micro-batch",
        promises=(1, 16),
        history="KTO's KL and BCO's shift came from each micro-batch, so accumulation changed the gradient (TRL).",
        edits=(
            Edit(
                "engine/step_trainer.py",
                "        if self.coupled and (len(parts) > 1 or not training or self.statistics_apart(work)):\n",
                "        if self.coupled and not training:\n",
            ),
            Edit(
                "engine/step_trainer.py",
                "                        step.statistics, step.rows = shared.values, shared.rows(index)\n",
                "                        step.statistics, step.rows = shared.values, shared.rows(0)\n"
                "                        shared = shared if not training else None\n",
            ),
        ),
        tests=("tests/engine/test_geometry.py::test_micro_batches_order_and_layout_leave_the_gradient_alone[kto]",),
    ),
    Mutation(
        name="whitening-of-a-micro-batch",
        promises=(1, 18),
        history="PPO whitened advantages within each micro-batch, so their scale depended on its size (TRL, trl#3308).",
        edits=(
            Edit(
                "methods/ppo.py",
                "whiten(values, shift_mean=shift_mean, statistics=statistics)",
                "whiten(values, shift_mean=shift_mean)",
            ),
        ),
        tests=("tests/online/test_pieces.py::test_the_gradient_does_not_notice[ppo]",),
    ),
    Mutation(
        name="token-counts-of-one-rank",
        promises=(1, 22),
        history="Losses were divided by the tokens of a rank and averaged over ranks: a mean of means (verl#906).",
        edits=(
            Edit(
                "collectives.py",
                "    return {name: sum(part.get(name, 0.0) for part in parts) for name in names}\n",
                "    return {name: dict(counts).get(name, 0.0) * world_size for name in names}\n",
            ),
        ),
        tests=("tests/engine/test_step.py::test_counts_are_summed_over_ranks",),
    ),
    Mutation(
        name="rows-depend-on-the-number-of-ranks",
        promises=(1,),
        history="Each rank cut its own share of the set into steps: other processes, other rows in a step.",
        edits=(
            Edit(
                "engine/windows.py",
                "        window = order[step * self.rows_per_step : (step + 1) * self.rows_per_step]\n"
                "        return window[self.rank :: self.world_size]\n",
                "        share, size = order[self.rank :: self.world_size], self.batch_size\n"
                "        return share[step * size : (step + 1) * size]\n",
            ),
        ),
        tests=("tests/engine/test_windows.py::test_the_rows_of_a_step_do_not_depend_on_the_number_of_processes",),
    ),
    Mutation(
        name="unknown-config-keys-ignored",
        promises=(3,),
        history="A misspelt setting in a config was dropped, and the run went on with the default (YAML configs, many trainers).",
        edits=(
            Edit(
                "settings/schema.py",
                '            problems.append(f"{name}={value!r} is not a field of {cls.__name__}.{hint}")\n',
                "            del hint\n",
            ),
        ),
        tests=("tests/settings/test_schema.py::test_unknown_keywords_are_all_named_with_the_nearest_field",),
        quick=True,
    ),
    Mutation(
        name="cpo-loss-type-ignored",
        promises=(3,),
        history="CPO's loss_type was read by the plain path and ignored by the fused one (trl#5837).",
        edits=(
            Edit(
                "methods/cpo.py",
                "                loss_type=name,\n",
                '                loss_type="sigmoid",\n',
            ),
        ),
        tests=("tests/engine/test_oracle.py::test_simpo_has_no_nll",),
    ),
    Mutation(
        name="idle-settings-accepted",
        promises=(3,),
        history="Settings that a method inherits and does not use were accepted and did nothing (TRL's experimental trainers).",
        edits=(
            Edit(
                "settings/config.py",
                '                problems.append(f"{f.name}={value!r} has no effect here. {self.unused[f.name]}")\n',
                "                pass\n",
            ),
        ),
        tests=("tests/scripts/test_config_fields.py::test_idle_fields_are_refused_once_they_are_set",),
    ),
    Mutation(
        name="simpo-includes-nll",
        promises=(3, 2),
        history="SimPO came with CPO's likelihood term switched on by default, which the paper does not have (TRL).",
        edits=(
            Edit(
                "methods/cpo.py",
                '        if self.args.cpo_alpha:\n            terms.append(Term(nll, "chosen_tokens", self.args.cpo_alpha))\n',
                '        terms.append(Term(nll, "chosen_tokens", self.args.cpo_alpha or 1.0))\n',
            ),
        ),
        tests=("tests/engine/test_oracle.py::test_simpo_has_no_nll",),
    ),
    Mutation(
        name="nash-md-default-is-biased",
        promises=(14,),
        history="The only form of the Nash-MD gradient was the biased one (TRL); as an option it must not be the default.",
        edits=(
            Edit(
                "methods/nash_md.py",
                'gradient_form: Literal["reward_to_go", "sequence", "trl"] = "reward_to_go"',
                'gradient_form: Literal["reward_to_go", "sequence", "trl"] = "trl"',
            ),
        ),
        tests=("tests/testing/test_check.py::test_every_trainer_passes[nash-md]",),
    ),
    Mutation(
        name="gkd-counts-other-tokens",
        promises=(1, 22),
        history="GKD divided by the tokens of the dataset's completions while it trained on sampled ones (TRL).",
        edits=(
            Edit(
                "methods/gkd.py",
                "    def context(self, batch: Batch, work: Any, training: bool) -> StepContext:\n",
                "    def counts(self, examples: Any) -> Any:\n"
                "        given = [self.train_dataset[e.row].completions for e in examples]\n"
                '        return {**super().counts(examples), "tokens": float(sum(len(ids) for row in given for ids in row))}\n\n'
                "    def context(self, batch: Batch, work: Any, training: bool) -> StepContext:\n",
            ),
        ),
        tests=("tests/testing/test_check.py::test_every_trainer_passes[gkd]",),
    ),
    Mutation(
        name="fully-masked-batch-is-silent",
        promises=(5,),
        history="A step in which every token was masked reported loss 0.0, for a whole run (trl#3927, trl#6668).",
        edits=(
            Edit(
                "engine/guard.py",
                '        elif not any(work.counts.get(name) for name in ("tokens", "prompt_tokens")):\n',
                "        elif work.counts is None:\n",
            ),
        ),
        tests=("tests/watch/test_alarms.py::test_nothing_left_to_learn_from_is_said",),
    ),
    Mutation(
        name="nan-reaches-the-weights",
        promises=(5,),
        history="One row with a NaN loss turned all weights into NaN, and training went on (many trainers).",
        edits=(
            Edit(
                "engine/guard.py",
                '        if not loss_is_finite or (not norm_is_finite and gradients == "plain"):\n',
                '        if gradients == "scaled" and not loss_is_finite:\n',
            ),
        ),
        tests=("tests/watch/test_alarms.py::test_a_loss_that_is_not_a_number_stops_before_the_weights_change",),
    ),
    Mutation(
        name="equal-rewards-are-silent",
        promises=(5,),
        history="All completions of all prompts got the same reward, the loss was 0, and nothing said why (GRPO threads).",
        edits=(
            Edit(
                "watch/alarms.py",
                '    elif flat or value("pairs/dropped_ratio") >= FULL:\n',
                "    elif flat and num_generations < 0:\n",
            ),
        ),
        tests=("tests/watch/test_alarms.py::test_rewards_that_never_differ_are_an_alarm",),
    ),
    Mutation(
        name="bco-delta-not-saved",
        promises=(6, 16),
        history="BCO's running shift began at 0 again after a resume (TRL keeps it in a file of its own that resuming skips).",
        edits=(
            Edit(
                "methods/bco.py",
                '        self.delta_state = self.delta_kind(**state["delta"])\n',
                "        self.delta_state = self.delta_kind()\n",
            ),
        ),
        tests=(
            "tests/engine/test_resume_processes.py::test_a_resumed_run_is_the_run_that_was_never_stopped[bco cut at 1]",
        ),
    ),
    Mutation(
        name="an-epoch-is-skipped-on-resume",
        promises=(6,),
        history="A resumed run went on with the rows of another epoch and ended with exit code 0 (verl#7401).",
        edits=(
            Edit(
                "engine/windows.py",
                "    def set_epoch(self, epoch: int) -> None:\n        self.epoch = epoch\n",
                "    def set_epoch(self, epoch: int) -> None:\n        self.epoch += 1\n",
            ),
        ),
        tests=(
            "tests/engine/test_resume_processes.py::test_a_resumed_run_is_the_run_that_was_never_stopped[reward cut at 3]",
        ),
    ),
    Mutation(
        name="rows-follow-the-global-random-state",
        promises=(6, 1),
        history="Shuffling drew from the global generator, whose state after a resume is another: other next rows.",
        edits=(
            Edit(
                "engine/windows.py",
                "return torch.randperm(num_rows, generator=generator).tolist()",
                "return torch.randperm(num_rows).tolist()",
            ),
        ),
        tests=("tests/engine/test_windows.py::test_epochs_differ_and_repeat_by_seed_and_number",),
    ),
    Mutation(
        name="rollout-buffer-not-saved",
        promises=(6, 18),
        history="PPO could not be resumed: completions of a half-used round were gone (trl#2657).",
        edits=(
            Edit(
                "online/trainer.py",
                '        self.buffer = deque([Example.from_plain(tree) for tree in step] for step in state["buffer"])\n',
                "        self.buffer = deque()\n",
            ),
        ),
        tests=("tests/methods/test_ppo.py::test_resume_equals_not_stopping[within a round]",),
    ),
    Mutation(
        name="sampling-starts-over-after-a-resume",
        promises=(6,),
        history="Sampling seeds were counted from 0 again after a resume: the same completions a second time.",
        edits=(Edit("online/trainer.py", '        self.rounds = state["rounds"]\n', "        self.rounds = 0\n"),),
        tests=("tests/methods/test_ppo.py::test_resume_equals_not_stopping[after a round]",),
    ),
    Mutation(
        name="critic-not-reloaded",
        promises=(18, 6),
        history="PPO's critic was not part of a resume; it started from a fresh head (trl#2657, trl#3750).",
        edits=(
            Edit(
                "methods/ppo.py",
                "        super()._load_from_checkpoint(str(Path(resume_from_checkpoint) / VALUE_FOLDER), both.critic)\n",
                "        del both\n",
            ),
        ),
        tests=("tests/methods/test_ppo.py::test_resume_equals_not_stopping[after a round]",),
    ),
    Mutation(
        name="critic-not-saved",
        promises=(18, 23),
        history="save_model wrote PPO's policy and dropped its critic (TRL).",
        edits=(
            Edit(
                "model/actor_critic.py",
                "        self.critic.save_pretrained(within, state_dict=critic)  # type: ignore[operator]\n",
                "        self.policy.save_pretrained(within, state_dict=policy)  # type: ignore[operator]\n",
            ),
        ),
        tests=("tests/methods/test_ppo.py::test_saved_models_are_the_trained_ones_and_start_the_next_run",),
    ),
    Mutation(
        name="checkpoints-written-in-place",
        promises=(11,),
        history="A checkpoint was written into its final folder; a crash left half of one that looked like a whole.",
        edits=(
            Edit(
                "engine/trainer.py",
                "            self._redirected = str(beside.parent)\n",
                "            beside = run_dir / beside.name\n",
            ),
            Edit(
                "engine/trainer.py",
                "                publish(beside, run_dir, self.state, run=self.identity(), limit=self.args.save_total_limit)\n",
                "                from strop.engine.checkpoint import write_manifest\n\n"
                "                write_manifest(beside, step)\n",
            ),
        ),
        tests=(
            "tests/engine/test_crash.py::test_a_fault_at_any_write_leaves_earlier_checkpoints_and_says_so[beside it]",
        ),
    ),
    Mutation(
        name="manifest-not-verified",
        promises=(11,),
        history="Resuming took the folder with the highest number, damaged or not.",
        edits=(
            Edit(
                "engine/checkpoint.py",
                "        if not (problems := problems_of(folder)):\n",
                "        if not (problems := []):\n",
            ),
        ),
        tests=("tests/engine/test_resume.py::test_damaged_checkpoints_are_passed_over_and_named",),
    ),
    Mutation(
        name="renamed-before-it-is-on-disk",
        promises=(11,),
        history="Files were renamed into place before they were flushed: after a power cut they were there, and empty.",
        edits=(Edit("engine/checkpoint.py", "        os.fsync(descriptor)\n", "        os.fstat(descriptor)\n"),),
        tests=("tests/engine/test_checkpoint.py::test_everything_is_on_disk_before_the_manifest_says_so",),
    ),
    Mutation(
        name="stale-reference-log-probs",
        promises=(8,),
        history="Remembered log-probs of the reference outlived a change of the reference (caches keyed by row number).",
        edits=(
            Edit(
                "engine/reference_upkeep.py",
                "            self.scores.forget()\n",
                "            pass\n",
            ),
        ),
        tests=("tests/engine/test_reference_scores.py::test_a_reference_that_moves_is_scored_again",),
    ),
    Mutation(
        name="reference-cache-ignores-masks",
        promises=(2, 8),
        history="A cache of reference log-probs found a row with other scored tokens (precomputed log-probs by row).",
        edits=(
            Edit(
                "engine/reference_scores.py",
                "        for ids in (example.prompt_ids, completion, example.mask(index)):\n",
                "        for ids in (example.prompt_ids, completion):\n",
            ),
        ),
        tests=(
            "tests/engine/test_reference_scores.py::test_rows_are_known_by_everything_that_their_log_probs_depend_on",
        ),
    ),
    Mutation(
        name="tokenizer-not-saved",
        promises=(23,),
        history="Models were saved without the tokenizer and template they were trained with (transformers#48016).",
        edits=(
            Edit(
                "engine/trainer.py",
                "                    super()._save(output_dir, state_dict)\n",
                "                    tokenizer, self.processing_class = self.processing_class, None\n"
                "                    super()._save(output_dir, state_dict)\n"
                "                    self.processing_class = tokenizer\n",
            ),
        ),
        tests=("tests/engine/test_saved_model.py",),
    ),
    Mutation(
        name="chat-template-not-kept",
        promises=(23,),
        history="A template given for training was used and not saved: chats with the model were rendered by another one.",
        edits=(
            Edit(
                "engine/parts.py",
                '        tokenizer.chat_template = Path(path).read_text(encoding="utf-8")\n',
                '        template, saved = Path(path).read_text(encoding="utf-8"), tokenizer.chat_template\n'
                "        tokenizer.chat_template = template\n"
                "        write = tokenizer.save_pretrained\n\n"
                "        def save(*a, **k):\n"
                "            tokenizer.chat_template = saved\n"
                "            result = write(*a, **k)\n"
                "            tokenizer.chat_template = template\n"
                "            return result\n\n"
                "        tokenizer.save_pretrained = save\n",
            ),
        ),
        tests=("tests/engine/test_saved_model.py",),
    ),
)
