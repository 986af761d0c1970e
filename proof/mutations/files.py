"""Bugs of reading and checking rows: damaged files, lost rows, rows in the wrong place."""

from __future__ import annotations

from proof.mutation import Edit, Mutation

BROKEN = "tests/data/test_broken_files.py"
PROPERTIES = "tests/data/test_properties.py"

MUTATIONS = (
    Mutation(
        name="repeated-keys-drop-a-value",
        promises=(10,),
        history="A JSON row that names a column twice lost one of its values: Python's parser keeps the last.",
        edits=(Edit("data/textfiles.py", "    if len(found) < len(pairs):", "    if False:"),),
        tests=(f"{BROKEN}::test_broken_files[check_rows]",),
    ),
    Mutation(
        name="disguised-files-are-parsed",
        promises=(10,),
        history="A Git LFS pointer or a web page saved as data.jsonl ended in a parser's error about column 1.",
        edits=(Edit("data/load.py", "        refuse_disguised(path)\n", "        pass\n"),),
        tests=(f"{BROKEN}::test_broken_files[prepare]",),
    ),
    Mutation(
        name="ids-beyond-the-vocabulary",
        promises=(10,),
        history="Token ids of another tokenizer passed the checks and ended in an index error inside the embedding.",
        edits=(Edit("data/checks.py", "    if vocabulary is not None:\n", "    if False:\n"),),
        tests=(f"{BROKEN}::test_broken_files[prepare]",),
    ),
    Mutation(
        name="pairs-with-none-for-a-prompt",
        promises=(10,),
        history="A pair whose prompt was None was learned without one, in silence, beside rows that had theirs.",
        edits=(Edit("data/cases.py", "    if column in row and row[column] is None:\n", "    if False:\n"),),
        tests=("tests/data/test_checks.py::test_none_is_no_prompt_and_no_answer[pairs]",),
    ),
    Mutation(
        name="deeply-nested-tools",
        promises=(10,),
        history="A row nested deeper than Python's stack ended in a RecursionError without a row number.",
        edits=(
            Edit(
                "data/messages.py",
                "        except (ValueError, RecursionError) as problem:",
                "        except ValueError as problem:",
            ),
        ),
        tests=(f"{BROKEN}::test_broken_files[check_rows]",),
    ),
    Mutation(
        name="model-before-rows",
        promises=(10,),
        history="The model was loaded, for minutes, before the first row was looked at (all trainers of TRL).",
        edits=(Edit("engine/parts.py", "    if model is None and tokenizer is None:", "    if model is None:"),),
        tests=("tests/engine/test_broken_files.py::test_a_model_init_waits_for_the_rows",),
    ),
    Mutation(
        name="check-imports-torch",
        promises=(10, 24),
        history="Looking at a file took as long as importing the training framework.",
        edits=(Edit("cli/check.py", "import sys\nfrom dataclasses", "import sys\nimport torch\nfrom dataclasses"),),
        tests=("tests/cli/test_broken_files.py::test_check_in_a_process_of_its_own",),
    ),
    Mutation(
        name="left-out-rows-are-not-counted",
        promises=(5, 10),
        history="Rows without anything to learn from were dropped and appeared in no count (TRL's DPO and Reward).",
        edits=(Edit("data/report.py", "            self.leave_out(row, *tree.left_out)\n", ""),),
        tests=(f"{PROPERTIES}::test_no_row_gets_lost_or_depends_on_others",),
    ),
    Mutation(
        name="trailing-line-break-is-learned",
        promises=(4,),
        history="ChatML's line break after the end of a turn was trained on, though no model ever writes it (TRL).",
        edits=(
            Edit(
                "data/chat.py", "        return bare if bare.endswith(self.stop_texts) else text", "        return text"
            ),
        ),
        tests=(f"{PROPERTIES}::test_answers_to_conversations",),
    ),
    Mutation(
        name="end-of-text-after-truncation",
        promises=(4,),
        history="A completion that was cut got an end of text, and the model learned to stop there (TRL's BCO).",
        edits=(
            Edit(
                "data/truncate.py",
                "        return ids[:limit], mask[:limit], True",
                "        return [*ids[: limit - 1], ids[-1]], mask[:limit], True",
            ),
        ),
        tests=(f"{PROPERTIES}::test_whole_texts",),
    ),
    Mutation(
        name="two-beginnings-of-text",
        promises=(4,),
        history="Text that begins with the BOS token got a second one (Llama templates, many trainers).",
        edits=(
            Edit(
                "data/encode.py",
                "return ids if ids[:size] == self.prefix else self.prefix + ids",
                "return self.prefix + ids",
            ),
        ),
        tests=(f"{PROPERTIES}::test_plain_text_is_learned_as_written",),
    ),
    Mutation(
        name="edited-rows-come-from-the-cache",
        promises=(24,),
        history="The cache of tokenised rows did not notice that the file had changed (datasets fingerprints).",
        edits=(Edit("data/cache_folder.py", "parts = [DATA_VERSION, fingerprint,", 'parts = [DATA_VERSION, "",'),),
        tests=("tests/engine/test_fast_start.py::test_a_second_run_tokenises_nothing",),
    ),
    Mutation(
        name="everything-is-tokenised-first",
        promises=(24,),
        history="The first step waited until the whole set was tokenised, on every rank (trl#1252, trl#6206).",
        edits=(Edit("data/prepare.py", "eager=total <= eager_rows", "eager=True"),),
        tests=("tests/engine/test_fast_start.py::test_the_first_step_of_a_large_set",),
    ),
)
