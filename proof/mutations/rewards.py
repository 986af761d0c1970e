"""Bugs of rewards: what a reward function may do to a run."""

from __future__ import annotations

from proof.mutation import Edit, Mutation

MUTATIONS = (
    Mutation(
        name="short-reward-list-is-broadcast",
        promises=(12,),
        history="A reward list of the wrong length was stretched over the batch without a word (trl#6533).",
        edits=(
            Edit(
                "rewards/contract.py",
                "    if len(returned) != n_rows:\n        return _refused(",
                "    returned = (list(returned) * n_rows)[:n_rows]\n    if len(returned) != n_rows:\n        return _refused(",
            ),
        ),
        tests=("tests/rewards/test_contract.py::test_answers_of_the_wrong_shape_are_refused_as_a_whole",),
        quick=True,
    ),
    Mutation(
        name="nan-rewards-pass",
        promises=(12, 5),
        history="A NaN reward went into the group's mean and made every advantage of the group NaN.",
        edits=(Edit("rewards/contract.py", "    if not math.isfinite(number):\n", "    if number is None:\n"),),
        tests=("tests/rewards/test_contract.py::test_nan_in_an_array_fails_and_says_how_to_abstain",),
    ),
    Mutation(
        name="reward-exception-swallowed",
        promises=(12,),
        history="A verifier that raised was caught and counted as reward 0, so a broken verifier looked like a bad model.",
        edits=(
            Edit(
                "rewards/invoke.py",
                "    except (KeyboardInterrupt, TimeLimit):\n        raise\n    except BaseException as error:\n"
                "        return raised(error)\n",
                "    except (KeyboardInterrupt, TimeLimit):\n        raise\n    except BaseException as error:\n"
                "        return Outcome(values=[0.0] * n_rows)\n",
            ),
        ),
        tests=("tests/rewards/test_invoke.py::test_whatever_is_raised_is_contained",),
    ),
    Mutation(
        name="endless-loop-not-killed",
        promises=(12, 19),
        history="A verifier that never returned kept its process, and the next batch with it (math-verify#65, verl#6673).",
        edits=(
            Edit(
                "rewards/isolation.py",
                "        self.kill()\n        return outcome\n",
                "        return outcome\n",
            ),
        ),
        tests=("tests/rewards/test_isolation.py::test_what_never_ends_is_killed_and_the_next_request_works",),
    ),
    Mutation(
        name="rewards-see-a-copy-of-the-script",
        promises=(12, 33),
        history="A reward that a callback makes harder stayed as it was, because it ran on a copy of the script's state.",
        edits=(Edit("settings/online.py", "reward_isolation: bool = False\n", "reward_isolation: bool = True\n"),),
        tests=("tests/rewards/test_script_state.py::test_what_a_callback_changes_is_seen_by_the_next_call",),
    ),
    Mutation(
        name="an-event-loop-for-every-call",
        promises=(12,),
        history=(
            "Each call of an async reward got a new event loop, so a client or semaphore made once failed in the second "
            "call (Flow-Factory#183)."
        ),
        edits=(
            Edit(
                "event_loop.py",
                "        if name not in _shared or not _shared[name].is_alive:\n",
                "        if True:\n",
            ),
        ),
        tests=("tests/rewards/test_script_state.py::test_a_semaphore_and_a_client_of_the_script_work_in_every_call",),
    ),
    Mutation(
        name="a-reward-ends-the-run-in-silence",
        promises=(12, 19),
        history="A reward that left by os._exit took the run with it, and nothing said which reward it was.",
        edits=(
            Edit(
                "rewards/watchdog_process.py", "                report(call, ended(call))\n", "                pass\n"
            ),
        ),
        tests=("tests/rewards/test_watchdog.py::test_the_run_ends_with_a_named_error",),
    ),
    Mutation(
        name="one-bad-row-fails-the-batch",
        promises=(12,),
        history="One completion that broke the verifier cost the rewards of the whole batch.",
        edits=(
            Edit(
                "rewards/scorer.py",
                "        if not call.row_by_row or not worth_searching(outcome, request.n_rows):\n",
                "        if True:\n",
            ),
        ),
        tests=("tests/rewards/test_scorer.py::test_skip_leaves_out_the_bad_row_only",),
    ),
    Mutation(
        name="missing-eos-looked-for-in-the-prompt",
        promises=(4, 12),
        history=(
            "The penalty for a missing end looked for EOS anywhere in prompt and completion; chat prompts are full of it, so "
            "nothing was ever penalised (TRL's Nash-MD and XPO)."
        ),
        edits=(
            Edit(
                "online/rewarding.py",
                'ended = torch.tensor([group.finish_reasons[i] == "stop" for group, i in flat])',
                "eos = tokenizer.eos_token_id\n"
                "        ended = torch.tensor([eos in group.example.prompt_ids + group.completions[i] for group, i in flat])",
            ),
        ),
        tests=("tests/engine/test_missing_eos.py",),
    ),
    Mutation(
        name="program-asked-whether-it-is-right",
        promises=(12, 30),
        history="A result was compared by its own class, so an object that equals everything passed every test.",
        edits=(
            Edit(
                "rewards/sandbox/remote.py",
                "        return NotImplemented\n\n    def __ne__",
                '        return _exact(bool, self._ask("eq", self, other))\n\n    def __ne__',
            ),
        ),
        tests=("tests/rewards/sandbox/test_judging.py::test_an_object_that_equals_everything_passes_nothing",),
    ),
    Mutation(
        name="program-defines-what-is-near",
        promises=(12, 30),
        history="Tests saw every name of the program, so one that defines abs() decided which difference is small.",
        edits=(Edit("rewards/sandbox/judging.py", "    if not own:\n", "    if True:\n"),),
        tests=("tests/rewards/sandbox/test_judging.py::test_a_function_named_like_a_builtin_is_the_one_under_test",),
    ),
    Mutation(
        name="sampled-code-runs-without-a-wall",
        promises=(12, 30),
        history="Where no wall could be built, a sampled program ran all the same, with the rights of the user.",
        edits=(Edit("rewards/sandbox/places.py", "    if not allow_unsafe_code:\n", "    if False:\n"),),
        tests=("tests/rewards/sandbox/test_places.py::test_without_a_wall_nothing_runs_and_the_error_says_what_to_do",),
    ),
    Mutation(
        name="reward-function-overwrites-the-loss",
        promises=(12,),
        history="log_metric('loss') of a reward function took the place of the run's own loss in every log line.",
        edits=(Edit("engine/metrics.py", "_pushed_name(name, own): value", "name: value"),),
        tests=(
            "tests/engine/test_metrics.py::test_what_a_reward_function_names_never_takes_the_place_of_the_runs_own",
        ),
    ),
)
