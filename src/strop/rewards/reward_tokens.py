"""Prompts and completions as the ids that a reward model was trained on, made by the model's own tokenizer.

The rules are those of the data pipeline, so that a reward model trained here is read here the way it learned: BOS
once; plain text ends in EOS, conversations in the template's own end of turn; a prompt keeps its tokens where the
text allows it; steps are tokenised one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from strop.data.chat import Chat, Unrenderable
from strop.data.encode import Ask, Encoder, common_prefix
from strop.data.options import TokenizeOptions
from strop.data.trees import join_turns
from strop.errors import DataError
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
        options = TokenizeOptions(append_eos=append_eos, strip_after_eos=strip_after_eos, step_separator=step_separator)
        self.tokenizer = tokenizer
        self.step_separator = step_separator
        self._encoder = Encoder(tokenizer, options)
        self._chat = Chat(self._encoder)
        self._own_specials = own_specials

    def whole(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[list[int]]:
        """Ids of prompt and completion together, (n,) lists.

        Raises:
            DataError: a conversation that the template cannot render.
        """
        found: list[list[int]] = [[] for _ in completions]
        plain = [i for i, pair in enumerate(zip(prompts, completions, strict=True)) if not _is_chat(*pair)]
        chats = sorted(set(range(len(completions))) - set(plain))
        for index, ids in zip(plain, self._plain([(prompts[i], completions[i]) for i in plain]), strict=True):
            found[index] = ids
        texts = [self._render(prompts[index], completions[index]) for index in chats]
        for index, ids in zip(chats, self._ids(texts), strict=True):
            found[index] = ids
        return found

    def steps(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[tuple[list[int], list[int]]]:
        """Ids of prompt, steps and separators, and the positions of the separators' last tokens, per completion.

        A completion is cut at the separator; blank steps do not count. The last step gets a separator too.
        """
        (separator,) = self._ids([self.step_separator])
        found = []
        for prompt, completion in zip(prompts, completions, strict=True):
            steps = [step for step in completion_text(completion).split(self.step_separator) if step.strip()]
            ids = self._prompt(prompt)
            ends = []
            for step in self._ids(steps):
                ids = ids + step + separator
                ends.append(len(ids) - 1)
            found.append((ids, ends))
        return found

    def _plain(self, pairs: Sequence[tuple[str, str]]) -> list[list[int]]:
        """A prompt's own ids first, unless the joint text is tokenised across the border in the same way anyway."""
        if self._own_specials:
            texts = [prompt + completion for prompt, completion in pairs]
            return [list(ids) for ids in self.tokenizer(texts)["input_ids"]] if texts else []
        prompts = self._ids([prompt for prompt, _ in pairs])
        joint = self._ids([prompt + completion for prompt, completion in pairs])
        alone = self._ids([completion for _, completion in pairs])
        found = []
        for before, together, after in zip(prompts, joint, alone, strict=True):
            ids = together if common_prefix(before, together) == len(before) else before + after
            found.append(self._encoder.with_eos(self._encoder.with_prefix(ids)))
        return found

    def _prompt(self, prompt: Any) -> list[int]:
        if not is_conversational(prompt):
            return self._encoder.with_prefix(self._ids([prompt])[0])
        self._chat.require()
        try:
            text = self._chat.render_prompt(prompt, None, {})
        except Unrenderable as problem:
            raise DataError(f"The reward model's chat template cannot render a prompt: {problem}") from None
        return self._ids([text])[0]

    def _render(self, prompt: Any, completion: Any) -> str:
        self._chat.require()
        prompt = prompt if is_conversational(prompt) else [{"role": "user", "content": prompt}]
        said = completion if is_conversational(completion) else [{"role": "assistant", "content": completion}]
        try:
            return self._chat.render_whole(join_turns(list(prompt), list(said))[0], None, {})
        except Unrenderable as problem:
            raise DataError(f"The reward model's chat template cannot render a conversation: {problem}") from None

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return [encoded.ids for encoded in self._encoder.encode([Ask(texts)])[0]] if texts else []


def _is_chat(prompt: Any, completion: Any) -> bool:
    return is_conversational(prompt) or is_conversational(completion)
