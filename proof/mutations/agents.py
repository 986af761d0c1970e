"""Bugs of agents and tools: what a program and the model have said to each other, and who is told what."""

from __future__ import annotations

from proof.mutation import Edit, Mutation

MUTATIONS = (
    Mutation(
        name="an-agents-history-is-rendered-anew",
        promises=(7, 28),
        history="A server in front of the policy tokenised every resent conversation again (agent loops over chat APIs).",
        edits=(
            Edit(
                "agents/recorded.py",
                "            if point is None:\n",
                "            if True:\n",
            ),
        ),
        tests=("tests/agents/test_recorded.py::test_a_conversation_that_is_resent_keeps_its_sampled_ids",),
    ),
    Mutation(
        name="agent-overwrites-the-rows-answer",
        promises=(28,),
        history="An agent returned a column of its row's own name, and a reward compared its answer with itself.",
        edits=(
            Edit(
                "agents/running.py",
                "        self._taken = {*OFFERED, *row}\n",
                "        self._taken = {*OFFERED}\n",
            ),
        ),
        tests=("tests/agents/test_agent_program.py::test_a_rows_columns_are_not_overwritten_by_an_agent",),
    ),
    Mutation(
        name="agents-rewards-by-place-in-the-record",
        promises=(28,),
        history="An agent's conversations alternated, and its rewards by request went to other turns.",
        edits=(
            Edit(
                "agents/recorded.py",
                "        places = accumulate((spoken.index(id(turn)) for turn in self.heard), max)\n",
                "        places = range(len(in_order))\n",
            ),
        ),
        tests=("tests/agents/test_agent_program.py::test_an_agents_rewards_belong_to_its_requests_in_their_order",),
    ),
    Mutation(
        name="edited-turn-as-the-models",
        promises=(28,),
        history="A later turn that the agent had edited counted as the model's, and moved the credit of turns.",
        edits=(
            Edit(
                "agents/recorded.py",
                "        talk.turns[known:] = told\n",
                "",
            ),
        ),
        tests=("tests/agents/test_recorded.py::test_a_later_turn_that_was_edited_is_counted_and_no_turn_of_the_model",),
    ),
    Mutation(
        name="another-agents-log-probs",
        promises=(7, 28),
        history="Requests of several agents were sampled together, and their log-probs handed out in another order.",
        edits=(
            Edit(
                "agents/program.py",
                "            ids, logps = sampled.completions[place][0], sampled.sampler_logps[place][0]\n",
                "            ids, logps = sampled.completions[place][0], sampled.sampler_logps[-1 - place][0]\n"
                "            logps = (logps * len(ids))[: len(ids)]\n",
            ),
        ),
        tests=("tests/online/test_agent_program.py::test_what_is_learned_is_what_was_sampled",),
    ),
    Mutation(
        name="an-agents-random-numbers-by-arrival",
        promises=(7, 28),
        history="Random numbers followed a request's place in the batch, so that no run could be repeated.",
        edits=(
            Edit(
                "agents/program.py",
                "prompt_numbers=tuple(asked.number for asked in together),",
                "prompt_numbers=tuple(range(len(together))),",
            ),
        ),
        tests=(
            "tests/agents/test_agent_program.py::test_two_calls_with_a_tool_are_one_completion_each_and_answered_together",
        ),
    ),
    Mutation(
        name="an-unseen-answer-is-learned",
        promises=(7, 28),
        history="A client's time was over, it asked again, and the answer that it never saw was learned from as well.",
        edits=(
            Edit(
                "agents/program.py",
                "            if not asked.call.is_awaited():\n                attempt.take_back(asked)\n",
                "            if False:\n                attempt.take_back(asked)\n",
            ),
            Edit("agents/attempt.py", "            elif asked.call.lost:\n", "            elif False:\n"),
        ),
        tests=(
            "tests/agents/test_unseen_answers.py::test_an_answer_that_nobody_saw_is_asked_for_again_with_the_same_random_numbers",
        ),
    ),
    Mutation(
        name="what-is-taken-back-stays-in-the-context",
        promises=(28,),
        history="The tokens of a request that was given up stayed in its conversation, before the next answer.",
        edits=(
            Edit(
                "agents/conversation.py",
                "                del stretch.ids[length:], stretch.mask[length:], stretch.logps[length:]\n",
                "                pass\n",
            ),
        ),
        tests=("tests/agents/test_recorded.py::test_what_is_taken_back_leaves_no_trace",),
    ),
    Mutation(
        name="tools-answer-another-completion",
        promises=(28,),
        history="Tools of several completions ran side by side, and their answers were handed out by the order of calls.",
        edits=(
            Edit(
                "agents/tools.py",
                "        return dict(zip(chain.from_iterable(chains), chain.from_iterable(said), strict=True))\n",
                "        return dict(zip(sorted(chain.from_iterable(chains)), chain.from_iterable(said), strict=True))\n",
            ),
        ),
        tests=("tests/agents/test_tools.py::test_plain_tools_of_several_completions_may_answer_side_by_side",),
    ),
    Mutation(
        name="a-wrong-number-of-turn-rewards-counts",
        promises=(28,),
        history="A completion whose turn rewards could not be read was learned from as if its turns had earned nothing.",
        edits=(
            Edit(
                "online/rewarding.py",
                '                group.values[index], sums[index] = float("nan"), float("nan")\n',
                "                pass\n",
            ),
        ),
        tests=("tests/online/test_turn_credit.py::test_a_wrong_number_of_turn_rewards_is_a_reward_that_failed",),
    ),
    Mutation(
        name="settings-of-tools-beside-an-agent",
        promises=(3,),
        history="tool_timeout and bounds on rounds were taken and not looked at where an agent program, or a function of "
        "the user's own, made the turns.",
        edits=(Edit("online/trainer.py", "        check_turn_settings(self.args, self.given)\n", ""),),
        tests=("tests/online/test_turn_settings.py::test_a_trainer_asks",),
    ),
    Mutation(
        name="threads-left-behind-uncounted",
        promises=(28,),
        history="Tools that hung side by side left a thread each at every step, and no number said so.",
        edits=(
            Edit(
                "agents/threads.py",
                "        self.left_behind.add(self._thread.thread)\n",
                "",
            ),
        ),
        tests=(
            "tests/agents/test_threads.py::test_threads_that_are_left_behind_are_counted_while_they_run",
            "tests/agents/test_left_behind.py::test_threads_are_counted_while_they_run_and_said",
        ),
    ),
)
