"""Bugs of runs that stop: resuming, ranks that are lost, memory that runs out."""

from __future__ import annotations

from proof.mutation import Edit, Mutation

RESUMED = "tests/engine/test_resume_processes.py::test_a_resumed_run_is_the_run_that_was_never_stopped"
RANKS = "tests/engine/test_resume_ranks.py"
LOST = "tests/engine/test_lost_rank.py::test_the_others_end_with_the_name_of_the_lost_rank"
MEMORY = "tests/engine/test_memory.py::test_logits_stay_within_their_budget"

MUTATIONS = (
    Mutation(
        name="random-state-taken-up-too-early",
        promises=(6,),
        history="Random states were restored before the first rows were fetched, which then drew from them (transformers).",
        edits=(
            Edit(
                "engine/step_trainer.py",
                "rows.flatten(batches)] if batches",
                "self.prepare_step(rows.flatten(batches))] if batches",
            ),
            Edit("engine/step_trainer.py", "self.make_work(self.prepare_step(inputs))", "self.make_work(inputs)"),
        ),
        tests=(f"{RESUMED}[grpo noisy dynamic_sampling cut at 1]",),
    ),
    Mutation(
        name="loader-draws-from-the-global-generator",
        promises=(6,),
        history="Every pass over a data loader draws a seed from the global generator, so an evaluation moved dropout.",
        edits=(Edit("engine/windows.py", "own = torch.Generator()", "own = None"),),
        tests=(f"{RESUMED}[dpo eval generate_during_eval eval_strategy arch disable_dropout cut at 3]",),
    ),
    Mutation(
        name="stream-starts-over",
        promises=(6,),
        history="A resumed run on a stream in its second pass began with the rows of the first (verl#7401).",
        edits=(Edit("engine/windows.py", "if not self.repeat or empty:", "if True:"),),
        tests=(f"{RESUMED}[sft stream rows max_steps arch disable_dropout cut at 4]",),
    ),
    Mutation(
        name="completions-sampled-before-the-stop-forgotten",
        promises=(6,),
        history="Completions sampled before the stop were forgotten, and the resumed run learned from others (TRL's GRPO).",
        edits=(
            Edit(
                "online/trainer.py",
                '[Example.from_plain(tree) for tree in step] for step in state["buffer"])',
                '[Example.from_plain(step[0]) for tree in step] for step in state["buffer"])',
            ),
        ),
        tests=(
            f"{RESUMED}[grpo use_adaptive_entropy entropy_target beta sync_ref_model ref_model_sync_steps generation_batch_size num_iterations rows max_steps arch disable_dropout cut at 3]",
        ),
    ),
    Mutation(
        name="half-a-logging-window-lost",
        promises=(6, 22),
        history="Metrics of steps between the last log line and the stop were in no checkpoint (TRL).",
        edits=(Edit("engine/run_state.py", "logs[name].load(state)", "pass"),),
        tests=(f"{RESUMED}[orpo cut at 1]",),
    ),
    Mutation(
        name="all-ranks-take-the-first-ones-state",
        promises=(6,),
        history="Every rank resumed with the rollout buffer of rank 0, and half of the completions were trained on twice.",
        edits=(Edit("engine/run_state.py", "own = read(folder, args.process_index)", "own = first"),),
        tests=(
            f"{RANKS}::test_one_and_two_processes_go_on_with_each_others_runs[grpo use_adaptive_entropy entropy_target "
            "beta generation_batch_size num_iterations rows max_steps]",
        ),
    ),
    Mutation(
        name="a-model-alone-taken-for-a-checkpoint",
        promises=(6, 11),
        history="Resuming from weights saved without optimizer state started a fresh optimizer and said nothing.",
        edits=(Edit("engine/run_state.py", 'if first["only_model"]:', "if False:"),),
        tests=(f"{RANKS}::test_a_model_alone_is_no_place_to_go_on_from",),
    ),
    Mutation(
        name="resumed-on-other-rows",
        promises=(6,),
        history="With another batch size, seed or set of rows a resumed run skipped the wrong rows (transformers).",
        edits=(Edit("engine/run_state.py", "    if changed:", "    if False:"),),
        tests=(f"{RANKS}::test_other_rows_in_a_step_are_refused",),
    ),
    Mutation(
        name="remembered-log-probs-are-believed",
        promises=(8, 11, 31),
        history="A flipped bit in precomputed log-probs of the reference gave losses of 2.8 where 0.15 belongs.",
        edits=(Edit("engine/reference_scores.py", ' if name == f"{key}-{checksum(key, t):08x}"}', "}"),),
        tests=("tests/engine/test_reference_scores.py::test_damaged_log_probs_are_found_when_they_are_read[a value]",),
    ),
    Mutation(
        name="best-checkpoint-is-believed",
        promises=(11, 31),
        history="The best checkpoint was loaded at the end of a run without a look at what had become of it.",
        edits=(
            Edit(
                "engine/trainer.py",
                "        check_whole(best)\n",
                "",
            ),
        ),
        tests=(
            "tests/online/test_best_checkpoint.py::"
            "test_a_best_checkpoint_that_was_damaged_meanwhile_is_not_loaded[grpo]",
        ),
    ),
    Mutation(
        name="best-checkpoint-of-the-first-rank-alone",
        promises=(19,),
        history="Other ranks than the first looked for the best checkpoint where it had been in the making: their run died "
        "at its end, with load_best_model_at_end.",
        edits=(
            Edit(
                "engine/checkpoint.py",
                "        state.best_model_checkpoint = named[0]\n",
                "",
            ),
        ),
        tests=("tests/engine/test_ranks_together.py::test_no_rank_runs_the_model_alone",),
    ),
    Mutation(
        name="lost-rank-shows-a-foreign-traceback",
        promises=(19,),
        history="When a process died the others ended in 'Connection closed by peer', minutes later or never (trl#6797).",
        edits=(
            Edit(
                "engine/lost_ranks.py",
                "if isinstance(error, StropError) or not is_broken_collective(error):",
                "if True:",
            ),
        ),
        tests=(f"{LOST}[dpo SIGKILL rank 1 of 2 backward]",),
    ),
    Mutation(
        name="chunks-kept-by-autograd",
        promises=(21,),
        history="A chunked head bounded nothing, because autograd kept the logits of every chunk (NeMo-RL#4222).",
        edits=(Edit("model/head.py", "if whole or not torch.is_grad_enabled():", "if True:"),),
        tests=(f"{MEMORY}[dpo, an adapter on the head]",),
    ),
    Mutation(
        name="all-rows-in-one-chunk",
        promises=(21,),
        history="The budget for logits was computed and not used.",
        edits=(Edit("model/head.py", "return max(1, min(count, rows)), keep", "return count, keep"),),
        tests=(f"{MEMORY}[sft]",),
    ),
    Mutation(
        name="distillation-keeps-both-vocabularies",
        promises=(21,),
        history="Distillation held the logits of student and teacher for all tokens until backward (TRL's GKD).",
        edits=(
            Edit(
                "methods/gkd.py",
                "checkpoint(part, student_hidden[i : i + chunk], teacher_hidden[i : i + chunk], use_reentrant=False)",
                "part(student_hidden[i : i + chunk], teacher_hidden[i : i + chunk])",
            ),
        ),
        tests=(f"{MEMORY}[gkd, an adapter on the head]",),
    ),
    Mutation(
        name="one-rank-runs-the-model-alone",
        promises=(19,),
        history="The first rank tried the layout for its record while the others went on: ZeRO-3 hung at the start.",
        edits=(
            Edit(
                "watch/run_directory.py",
                "        known = self.facts()  #",
                "        known = self.facts() if state.is_world_process_zero else {}  #",
            ),
        ),
        tests=("tests/engine/test_ranks_together.py::test_no_rank_runs_the_model_alone",),
    ),
    Mutation(
        name="a-resumed-run-repeats-completions",
        promises=(6,),
        history="Completions of the step after a checkpoint bore the checkpoint's step: a resumed run wrote them twice.",
        edits=(Edit("watch/run_directory.py", "return step + within if", "return step if"),),
        tests=(
            "tests/watch/test_run_directory.py::test_a_run_that_is_gone_on_with_keeps_each_completion_once[buffered0]",
        ),
    ),
    Mutation(
        name="rehearsal-keeps-running-means",
        promises=(6,),
        history="A rehearsal moved BCO's running mean, and the run after it was another one.",
        edits=(Edit("engine/rehearsal.py", "        trainer.load_extra_state(extra)\n", ""),),
        tests=("tests/engine/test_rehearsal.py::test_a_rehearsed_run_is_the_same_run[bco]",),
    ),
    Mutation(
        name="rehearsal-draws-from-the-runs-generator",
        promises=(6,),
        history="Dropout of the rehearsal used up random numbers, so that every later step dropped other weights.",
        edits=(Edit("engine/rehearsal.py", "with torch.random.fork_rng():", "with contextlib.nullcontext():"),),
        tests=("tests/engine/test_rehearsal.py::test_a_rehearsed_run_is_the_same_run[sft]",),
    ),
    Mutation(
        name="an-adapter-rate-over-a-given-one",
        promises=(3,),
        history="The learning rate for adapters replaced the one that was given.",
        edits=(
            Edit(
                "engine/arguments.py", 'if "learning_rate" in args.given or args.learning_rate', "if args.learning_rate"
            ),
        ),
        tests=("tests/engine/test_adapter_rate.py::test_an_adapter_has_a_rate_of_its_own_where_none_was_given",),
    ),
    Mutation(
        name="a-plain-dataclass-forgets-what-was-given",
        promises=(3,),
        history="A config that a script derived by a plain @dataclass noted nothing as given, so that an adapter was "
        "trained at ten times the learning rate that was written.",
        edits=(Edit("settings/config.py", "frozenset(positions[: len(args)]) | names", "frozenset()"),),
        tests=("tests/settings/test_plain_subclass.py::test_a_learning_rate_that_was_given_is_kept_with_an_adapter",),
    ),
    Mutation(
        name="settings-beside-plain-arguments-are-dropped",
        promises=(3,),
        history="What a trainer was given beside plain TrainingArguments (max_seq_length=512) had no effect.",
        edits=(
            Edit("engine/arguments.py", "return config_class(**values, **settings)", "return config_class(**values)"),
        ),
        tests=("tests/scripts/test_earlier_settings.py::test_an_sft_script_of_the_year_2023",),
    ),
)
