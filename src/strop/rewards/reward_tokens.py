"""Prompts and completions as the ids that a reward model was trained on, made by the model's own tokenizer.

The rules are those of the data pipeline and its builder of trees, so that a reward model trained here is read here the
way it learned: BOS once; plain text ends in EOS, conversations in the template's own end of turn; a prompt keeps its
tokens where the text allows it; steps are tokenised one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from strop.data.cases import Case
from strop.data.chat import Chat, Unrenderable
from strop.data.encode import Ask, Encoder
from strop.data.kinds import DatasetKind
from strop.data.options import TokenizeOptions
from strop.data.trees import TreeBuilder, join_turns
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
        builder, trees = self._built(DatasetKind.UNPAIRED_PREFERENCE, cases)
        found = []
        for case, tree in zip(cases, trees, strict=True):
            if self._own_specials and not case.chat:
                found.append(list(self.tokenizer(case.prompt + case.completions[0])["input_ids"]))
            elif tree.left_out is None:
                found.append(tree.prompt_ids + tree.completions[0])
            else:
                found.append(self._without_answer(builder.chat, case))
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
        _, trees = self._built(DatasetKind.STEPWISE, cases)
        found: list[tuple[list[int], list[int]]] = []
        for tree in trees:
            marks = tree.mask(0) if tree.completions else []
            ends = [len(tree.prompt_ids) + at for at, marked in enumerate(marks) if marked]
            found.append(([*tree.prompt_ids, *(tree.completions or [[]])[0]], ends))
        return found

    def _built(self, kind: DatasetKind, cases: list[Case]) -> tuple[TreeBuilder, list[Tokenized]]:
        builder = TreeBuilder(kind, self._encoder, self._options, masks=False)
        if any(case.chat for case in cases):
            builder.chat.require()
        try:
            return builder, builder.uncut(cases)
        except Unrenderable as problem:
            raise DataError(f"The reward model's chat template cannot render a conversation: {problem}") from None

    def _without_answer(self, chat: Chat, case: Case) -> list[int]:
        """The ids where the completion has none of its own: what stands before it, and its end."""
        if not case.chat:
            (whole,) = self._encoder.encode([Ask([case.prompt + case.completions[0]])])[0]
            return self._encoder.with_eos(self._encoder.with_prefix(whole.ids))
        messages, _ = join_turns(case.prompt, case.completions[0])
        (whole,) = self._encoder.encode([Ask([chat.render_whole(messages, case.tools, case.template_kwargs)])])[0]
        return whole.ids


def _case(prompt: Any, completion: Any) -> Case:
    if is_conversational(prompt) or is_conversational(completion):
        asked = list(prompt) if is_conversational(prompt) else [{"role": "user", "content": prompt}]
        said = list(completion) if is_conversational(completion) else [{"role": "assistant", "content": completion}]
        return Case("prompt_completion", asked, [said], chat=True)
    return Case("prompt_completion", prompt, [completion])
