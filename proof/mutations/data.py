"""Bugs of data: what is tokenised, supervised, checked, cut, cached and paired."""

from __future__ import annotations

from proof.mutation import Edit, Mutation

MUTATIONS = (
    Mutation(
        name="mask-by-pad-id",
        promises=(4,),
        history=(
            "Tokens equal to the padding id were masked. With pad = EOS, which many tokenizers have, the end of an answer "
            "was never learned; HumanEval fell from 76 % to 0 % (transformers#48016)."
        ),
        edits=(
            Edit(
                "data/trees.py",
                "        tree.completions = [self.encoder.with_eos(ids) for ids in tree.completions]\n        return tree\n",
                "        tree.completions = [self.encoder.with_eos(ids) for ids in tree.completions]\n"
                "        pad = self.encoder.tokenizer.pad_token_id\n"
                "        tree.masks = [[int(token != pad) for token in ids] for ids in tree.completions]\n"
                "        return tree\n",
            ),
        ),
        tests=("tests/data/test_trees.py::test_padding_id_and_eos_in_text_change_no_mask",),
        quick=True,
    ),
    Mutation(
        name="double-eos",
        promises=(4,),
        history="EOS was appended to completions that ended in it already (TRL's ORPO, CPO and BCO).",
        edits=(
            Edit(
                "data/encode.py",
                "if not self.options.append_eos or self.eos_id is None or (ids and ids[-1] in self.stops):",
                "if not self.options.append_eos or self.eos_id is None:",
            ),
        ),
        tests=("tests/data/test_trees.py::test_eos_ends_plain_text_once",),
    ),
    Mutation(
        name="eos-after-truncation",
        promises=(4,),
        history="A completion cut at max_length got an EOS at the cut, and the model learned to stop in mid-sentence (BCO).",
        edits=(
            Edit(
                "data/trees.py",
                "        ids, mask, cut = cut_flat(ids, mask, self.options, self._bos_of(ids))\n",
                "        ids, mask, cut = cut_flat(ids, mask, self.options, self._bos_of(ids))\n"
                "        ids = [*ids[:-1], self.encoder.eos_id] if cut else ids\n",
            ),
        ),
        tests=("tests/data/test_truncate.py::test_no_eos_after_truncation",),
    ),
    Mutation(
        name="line-break-after-eos-is-learned",
        promises=(4,),
        history="Chat templates print a line break after the end of turn; it was supervised, after the model should stop (TRL).",
        edits=(
            Edit(
                "data/chat.py",
                "return bare if bare.endswith(self.stop_texts) else text",
                "return text",
            ),
        ),
        tests=("tests/data/test_trees.py::test_chat_ends_in_its_own_end_of_turn",),
    ),
    Mutation(
        name="double-bos",
        promises=(4,),
        history="BOS stood twice where both the template and the tokenizer put one (Llama chat models in several trainers).",
        edits=(
            Edit(
                "data/encode.py",
                "return ids if ids[:size] == self.prefix else self.prefix + ids",
                "return self.prefix + ids if size else ids",
            ),
        ),
        tests=("tests/data/test_trees.py::test_bos_once",),
    ),
    Mutation(
        name="step-separator-only-in-inference",
        promises=(4, 17),
        history=(
            "Process reward models were trained without a separator between prompt and first step, and documented to be "
            "used with one (TRL's PRM)."
        ),
        edits=(
            Edit(
                "rewards/reward_tokens.py",
                "            steps = [part for part in parts if part.strip()]\n",
                '            steps = ["", *(part for part in parts if part.strip())]\n',
            ),
        ),
        tests=("tests/rewards/test_reward_tokens.py::test_steps_are_tokenised_one_by_one",),
    ),
    Mutation(
        name="identical-pairs-are-trained-on",
        promises=(5, 10),
        history="Pairs whose answers became equal once cut to length were trained on, with a gradient of noise (TRL's DPO).",
        edits=(
            Edit(
                "data/trees.py",
                "if self.kind is DatasetKind.PREFERENCE and tree.completions[0] == tree.completions[1]:",
                "if False:",
            ),
        ),
        tests=("tests/data/test_truncate.py::test_truncation_leaves_out_pairs_that_become_the_same",),
    ),
    Mutation(
        name="rows-without-a-token-to-learn",
        promises=(5,),
        history="A small max_length left rows without a supervised token; they were trained on with loss 0.0 (trl#3927).",
        edits=(
            Edit(
                "data/trees.py",
                "        if min(counts) < 1:\n            return Tokenized.without",
                "        if min(counts) < 0:\n            return Tokenized.without",
            ),
        ),
        tests=("tests/data/test_dataset.py::test_every_max_length",),
    ),
    Mutation(
        name="data-checks-import-torch",
        promises=(10, 24),
        history="Looking at a data file cost the import of torch, so a typo in a column took half a minute to show.",
        edits=(
            Edit(
                "data/checks.py",
                "from strop.data.findings import Finding, Problems, RowProblem\n",
                "import torch  # noqa: F401\n\nfrom strop.data.findings import Finding, Problems, RowProblem\n",
            ),
        ),
        tests=("tests/data/test_checks.py::test_checks_do_not_import_torch",),
    ),
    Mutation(
        name="key-error-deep-in-the-stack",
        promises=(10,),
        history="A missing column surfaced as a KeyError far from its cause, without file or row (TRL's data collators).",
        edits=(
            Edit(
                "data/cases.py",
                "    if form is None:\n        raise _missing(row, kind)\n",
                "    if form is None:\n        raise KeyError(_missing(row, kind).column)\n",
            ),
        ),
        tests=("tests/data/test_checks.py::test_broken_file[a column missing in one row]",),
    ),
    Mutation(
        name="bad-bytes-are-replaced",
        promises=(10,),
        history="Bytes that are no UTF-8 became replacement characters, and the model was trained on them.",
        edits=(
            Edit(
                "data/textfiles.py",
                'text = raw.decode("utf-8").lstrip("\\ufeff")',
                'text = raw.decode("utf-8", "replace").lstrip("\\ufeff")',
            ),
        ),
        tests=("tests/data/test_checks.py::test_broken_file[bad byte]",),
    ),
    Mutation(
        name="only-the-first-broken-row-is-told",
        promises=(10,),
        history="Validation stopped at the first broken row, so a file with ten of them took ten starts to repair.",
        edits=(
            Edit(
                "data/checks.py",
                "        finding = self.problems.add(number, self.where(number), problem)\n",
                "        if self.problems.total and not self.options.skip_bad_rows:\n            return\n"
                "        finding = self.problems.add(number, self.where(number), problem)\n",
            ),
        ),
        tests=("tests/data/test_checks.py::test_all_problems_come_in_one_error",),
    ),
    Mutation(
        name="kto-self-pair",
        promises=(16,),
        history=(
            "KTO's mismatched completions came from the batch in reverse order, so that in odd batches, and in batches of "
            "one, a prompt met its own completion (trl#1911)."
        ),
        edits=(
            Edit(
                "data/partners.py",
                "        other = (row + 1) % size\n        walked = 1\n",
                "        partners[row] = size - 1 - row\n        continue\n        other, walked = row, 1\n",
            ),
        ),
        tests=("tests/data/test_partners.py::test_the_first_row_that_differs_in_both",),
    ),
    Mutation(
        name="cache-key-ignores-edits",
        promises=(24,),
        history="A cache of tokenised data was found again although rows had been edited: training went on with the old text.",
        edits=(
            Edit(
                "data/cache_folder.py",
                "parts = [DATA_VERSION, fingerprint, kind, chosen, describe_tokenizer(tokenizer)]",
                "parts = [DATA_VERSION, kind, chosen, describe_tokenizer(tokenizer)]",
            ),
        ),
        tests=("tests/data/test_store.py::test_what_changes_ids_leads_to_another_folder",),
    ),
    Mutation(
        name="random-fingerprints",
        promises=(24,),
        history="Transforms that could not be hashed got random fingerprints: every run tokenised again (trl#1252, trl#6206).",
        edits=(
            Edit(
                "data/cache_folder.py",
                "parts = [DATA_VERSION, fingerprint, kind, chosen, describe_tokenizer(tokenizer)]",
                "parts = [os.urandom(8).hex(), fingerprint, kind, chosen, describe_tokenizer(tokenizer)]",
            ),
        ),
        tests=("tests/data/test_store.py::test_a_second_run_makes_no_tokenizer_call",),
    ),
    Mutation(
        name="every-rank-tokenises",
        promises=(24,),
        history="All ranks tokenised the same rows side by side, on the same cores (trl#1252).",
        edits=(Edit("data/cache_folder.py", "            lock.acquire(timeout=PATIENCE_S)\n", "            pass\n"),),
        tests=("tests/data/test_store.py::test_two_processes_tokenise_once",),
    ),
    Mutation(
        name="damaged-records-are-read",
        promises=(24,),
        history="A flipped bit in a cache file gave other token ids, in silence.",
        edits=(
            Edit(
                "data/store.py",
                "        if checksums[row].as_py() == self._checksum(position, data):\n",
                "        if True:\n",
            ),
        ),
        tests=("tests/data/test_store.py::test_a_flipped_bit_gives_the_same_trees",),
    ),
    Mutation(
        name="pairs-lose-their-prompts",
        promises=(10,),
        history=(
            "Pairs whose prompt stood in `question` or `instruction` were called fit and trained on without it, in silence."
        ),
        edits=(
            Edit(
                "data/layouts.py",
                '        if labelled and not _hidden_prompts(row, layout.used | {"prompt"}):\n',
                "        if False:\n",
            ),
            Edit("data/layouts.py", "    if hidden:\n", "    if False:\n"),
        ),
        tests=(
            "tests/data/test_layouts.py::test_the_whole_prompt_reaches_the_tokens",
            "tests/data/test_layouts.py::test_pairs_of_public_sets_keep_their_prompts",
        ),
    ),
    Mutation(
        name="transforms-are-dropped",
        promises=(10,),
        history="A Dataset with a transform was trained on as if it had none (trl#6039).",
        edits=(
            Edit(
                "data/arrow.py",
                'if dataset.format["type"] != "custom":',
                "if True:",
            ),
        ),
        tests=("tests/data/test_padding.py::test_rows_are_what_indexing_the_dataset_gives",),
    ),
    Mutation(
        name="none-is-deleted",
        promises=(10,),
        history="None in tool schemas and arguments was deleted from Arrow data: one file gave two texts.",
        edits=(Edit("data/padding.py", "if not pa.types.is_null(part.type))", "if True)"),),
        tests=("tests/data/test_padding.py::test_one_text_whatever_way_the_rows_come",),
    ),
    Mutation(
        name="flagged-messages-are-learned",
        promises=(4,),
        history="Messages with weight 0 or train: false were trained on (verl, axolotl and the OpenAI form have them).",
        edits=(
            Edit(
                "data/messages.py",
                'return message["role"] in TOOL_ROLES or is_learned(message) is False',
                'return message["role"] in TOOL_ROLES',
            ),
        ),
        tests=("tests/data/test_flags_and_calls.py::test_a_message_that_is_not_to_be_learned_is_not",),
    ),
    Mutation(
        name="stop-ids-of-the-model-are-unknown",
        promises=(4,),
        history=(
            "generation_config.eos_token_id never reached tokenisation: the line break after a turn's end was learned "
            "(Llama 3)."
        ),
        edits=(Edit("engine/rows.py", "if token in own)", "if False)"),),
        tests=("tests/engine/test_rows.py::test_the_turn_end_of_a_generation_config_ends_a_completion",),
    ),
)
