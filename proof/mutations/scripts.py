"""Bugs of what a script brings: its settings, optimizer, overrides, frames of data, weights that it unfreezes."""

from __future__ import annotations

from proof.mutation import Edit, Mutation

MUTATIONS = (
    Mutation(
        name="a-prompt-that-a-tuple-hides",
        promises=(17,),
        history="extract_prompt compared a tuple of messages with a list as wholes, and found no common beginning.",
        edits=(
            Edit(
                "scripts/conversations.py",
                "common_prefix(list(chosen), list(rejected))",
                "common_prefix(chosen, rejected)",
            ),
        ),
        tests=("tests/scripts/test_conversations.py::test_a_prompt_is_found_in_whatever_holds_the_messages",),
    ),
    Mutation(
        name="a-class-that-is-patched",
        promises=(33,),
        history="A method put on a trainer's class after it was made was never called, and nothing said so.",
        edits=(
            Edit(
                "engine/overrides.py",
                "        refuse(cls)  # a script may have put a method on the class since, on ours or on the parent too\n",
                "",
            ),
        ),
        tests=(
            "tests/engine/test_overrides.py::"
            "test_a_method_put_on_the_class_later_is_refused_when_a_trainer_is_made",
        ),
    ),
    Mutation(
        name="a-schedule-of-another-optimizer",
        promises=(33,),
        history="A schedule given without its optimizer moved a rate that nothing is trained with.",
        edits=(
            Edit(
                "engine/script_seams.py",
                'getattr(schedule, "optimizer", optimizer) is not optimizer:',
                'getattr(schedule, "optimizer", optimizer) is None:',
            ),
        ),
        tests=("tests/engine/test_script_seams.py::test_a_schedule_of_another_optimizer_is_refused",),
    ),
    Mutation(
        name="a-rate-that-was-written-later",
        promises=(3,),
        history="A learning rate assigned to the settings was replaced by the default of adapters.",
        edits=(
            Edit("settings/config.py", '            self.__dict__["given"] = self.given | {name}\n', "            pass\n"),
            Edit("engine/arguments.py", ' or args.learning_rate not in (default, rate):', ":"),
        ),
        tests=("tests/engine/test_adapter_rate.py::test_a_rate_written_later_was_named",),
    ),
    Mutation(
        name="the-rate-of-an-adapter-of-an-adapter",
        promises=(3,),
        history="Settings that served two trainers had the adapters' factor of ten twice.",
        edits=(
            Edit(
                "engine/arguments.py",
                '    default = next(default_of(f) for f in dataclasses.fields(args) if f.name == "learning_rate")\n',
                "    default = args.learning_rate\n",
            ),
        ),
        tests=("tests/engine/test_adapter_rate.py::test_settings_that_serve_several_trainers",),
    ),
    Mutation(
        name="unfrozen-once-the-trainer-is-made",
        promises=(8,),
        history="Norms unfrozen between a trainer's making and its training moved the reference, the adapter off.",
        edits=(Edit("engine/script_seams.py", "            self.reference.keep_start()\n", "            pass\n"),),
        tests=(
            "tests/engine/test_script_seams.py::"
            "test_weights_unfrozen_after_the_trainer_was_made_do_not_move_the_reference",
        ),
    ),
    Mutation(
        name="routers-weigh-what-is-left-out",
        promises=(1,),
        history="A router's loss was divided by tokens that its gradient does not go through, or by a prompt's once.",
        edits=(
            Edit(
                "engine/step.py",
                "    return float(sum(len(e.prompt_ids) + len(ids) for e in examples for ids in e.completions))\n",
                "    return float(sum(e.num_tokens for e in examples))\n",
            ),
        ),
        tests=("tests/engine/test_router_share.py::test_tokens_count_as_in_the_padded_layout",),
    ),
    Mutation(
        name="silent-groups-balance-nothing",
        promises=(1,),
        history="Groups of equal rewards were left out of the pass that balances a router's load.",
        edits=(
            Edit(
                "methods/grpo.py",
                "        return not (self.args.beta or self.bonus or self.router_coef)\n",
                "        return not (self.args.beta or self.bonus)\n",
            ),
        ),
        tests=("tests/engine/test_router_share.py::test_the_weights_of_the_micro_batches_add_up_to_one",),
    ),
    Mutation(
        name="experts-that-do-not-come-again",
        promises=(6,),
        history="A resumed mixture of experts went on with its first experts: saved one by one, none was found by name.",
        edits=(Edit("model/saving.py", "    load_renamed(model, folder)\n", ""),),
        tests=("tests/engine/test_resume_mixture.py::test_a_run_that_is_gone_on_with_has_its_experts[sft]",),
    ),
    Mutation(
        name="a-format-hides-columns",
        promises=(10,),
        history="Columns that a dataset's format shows unconverted (output_all_columns) were dropped, a mask among them.",
        edits=(Edit("data/arrow.py", '        if dataset.format["output_all_columns"]:\n', "        if False:\n"),),
        tests=("tests/data/test_arrow.py::test_a_format_that_converts_some_columns_shows_the_others_too",),
    ),
    Mutation(
        name="a-frame-keeps-what-arrow-filled-in",
        promises=(10,),
        history="One Parquet file gave two texts, by its path and as a pandas frame, whose objects are filled up with None.",
        edits=(
            Edit(
                "data/load.py", "    return list(map(cleaner_of_rows(rows), rows))\n", "    return rows\n",
            ),
        ),
        tests=("tests/data/test_arrow.py::test_one_file_gives_one_text_by_whatever_it_is_read",),
    ),
    Mutation(
        name="flags-of-other-tools",
        promises=(4,),
        history="Messages marked `loss: false`, as some tools write it, were learned.",
        edits=(Edit("data/messages.py", '"loss_mask", "loss", "loss_weight"', '"loss_mask", "loss_weight"'),),
        tests=("tests/data/test_flags_and_calls.py::test_a_message_that_is_not_to_be_learned_is_not",),
    ),
    Mutation(
        name="an-adapters-folder-knows-no-end",
        promises=(4,),
        history="What ends a text was not known of an adapter's folder, which has no generation config of its own.",
        edits=(Edit("engine/rows.py", "from_pretrained(weights_source(source))", "from_pretrained(str(source))"),),
        tests=("tests/engine/test_rows.py::test_an_adapters_folder_ends_texts_as_its_base_does",),
    ),
    Mutation(
        name="layers-replicated-twice",
        promises=(8,),
        history="The reference's copy of a trained adapter with layer_replication replicated the policy's layers again, "
        "and another model was trained.",
        edits=(Edit("model/reference.py", "            config.layer_replication = None  #", "            pass  #"),),
        tests=("tests/model/test_reference.py::test_first_kl_is_exactly_zero_and_training_does_not_move_it",),
    ),
    Mutation(
        name="no-loss-of-a-finished-run",
        promises=(6,),
        history="A finished run that was asked to go on returned a training loss of 0.",
        edits=(
            Edit(
                "engine/trainer.py",
                'TrainOutput(step, loss := mean_loss_of_run(folder), {"train_loss": loss})',
                "TrainOutput(step, 0.0, {})",
            ),
        ),
        tests=("tests/engine/test_log_lines.py::test_a_finished_run_that_is_asked_to_go_on_returns_the_loss_it_had",),
    ),
    Mutation(
        name="a-value-model-that-learns-alone",
        promises=(33,),
        history="PPO with a frozen policy (an adapter loaded for inference) trained its value model and nothing else.",
        edits=(Edit("engine/script_seams.py", "        check_learns(self.policy)  #", "        #"),),
        tests=("tests/engine/test_script_seams.py::test_a_policy_that_is_frozen_is_refused",),
    ),
)  # fmt: skip
