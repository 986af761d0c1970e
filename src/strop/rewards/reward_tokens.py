"""Prompts and completions as the ids that a reward model was trained on, made by the model's own tokenizer.

The rules are those of the data pipeline and its builder of trees, so that a reward model trained here is read here the
way it learned: BOS once; plain text ends in EOS, conversations in the template's own end of turn; a prompt keeps its
tokens where the text allows it; steps are tokenised one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from strop.data.cases import Case
from strop.data.encode import Encoder
from strop.data.kinds import DatasetKind
from strop.data.options import TokenizeOptions
from strop.data.trees import TreeBuilder
from strop.data.truncate import Tokenized
from strop.errors import DataError
from strop.records import Extras
from strop.rewards.texts import completion_text, is_conversational


class RewardTokenizer:
    """A reward model's tokenizer and the conventions of its inputs.

    Args:
        tokenizer: a transformers tokenizer.
        append_eos: end plain text in EOS.
        strip_after_eos: drop white space that a chat template prints after the last end of turn.
        own_specials: plain text gets the special tokens that the tokenizer itself puts around it (encoders).
        step_separator: text that ends every step.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        append_eos: bool = True,
        strip_after_eos: bool = True,
        own_specials: bool = False,
        step_separator: str = "\n",
    ) -> None:
        self._options = TokenizeOptions(
            append_eos=append_eos,
            strip_after_eos=strip_after_eos,
            step_separator=step_separator,
            completion_only_loss=False,
        )
        self.tokenizer = tokenizer
        self._encoder = Encoder(tokenizer, self._options)
        self._own_specials = own_specials

    def whole(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[list[int]]:
        """Ids of prompt and completion together, (n,) lists.

        Raises:
            DataError: a conversation that the template cannot render.
        """
        cases = [_case(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        trees = self._built(DatasetKind.PROMPT_COMPLETION, cases)
        found = [[*tree.prompt_ids, *(tree.completions or [[]])[0]] for tree in trees]
        for row, case in enumerate(cases):
            if self._own_specials and not case.chat:
                found[row] = list(self.tokenizer(prompts[row] + completions[row])["input_ids"])
        return found

    def steps(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[tuple[list[int], list[int]]]:
        """Ids of prompt, steps and separators, and the positions of the separators' last tokens, per completion.

        A completion is cut at the separator; blank steps do not count. The last step gets a separator too.
        """
        cases = []
        for prompt, completion in zip(prompts, completions, strict=True):
            parts = completion_text(completion).split(self._options.step_separator)
            steps = [part for part in parts if part.strip()]
            labels = Extras(labels=[0.0] * len(steps))
            cases.append(Case("stepwise", prompt, steps, chat=is_conversational(prompt), extras=labels))
        found: list[tuple[list[int], list[int]]] = []
        for tree in self._built(DatasetKind.STEPWISE, cases):
            marks = tree.mask(0) if tree.completions else []
            ends = [len(tree.prompt_ids) + at for at, marked in enumerate(marks) if marked]
            found.append(([*tree.prompt_ids, *(tree.completions or [[]])[0]], ends))
        return found

    def _built(self, kind: DatasetKind, cases: list[Case]) -> list[Tokenized]:
        builder = TreeBuilder(kind, self._encoder, self._options)
        if any(case.chat for case in cases):
            builder.chat.require()
        trees = builder.build_all(cases)
        for tree in trees:
            if tree.left_out is not None and tree.left_out[0] == "unrenderable":
                raise DataError(f"The reward model's chat template cannot render a conversation: {tree.left_out[1]}")
        return trees


def _case(prompt: Any, completion: Any) -> Case:
    if is_conversational(prompt) or is_conversational(completion):
        asked = list(prompt) if is_conversational(prompt) else [{"role": "user", "content": prompt}]
        said = list(completion) if is_conversational(completion) else [{"role": "assistant", "content": completion}]
        return Case("prompt_completion", asked, [said], chat=True)
    # An answer without a word is its end.
    return Case("prompt_completion", prompt, [completion]) if completion else Case("text", None, [prompt])
