"""Cases -> token trees: the rules of tokenisation (R1-R12), written once for every kind of row.

Each builder is a generator that asks for the ids of texts (see encode.py). BOS and EOS are counted in ids; masks
come from lengths and character spans, never from comparing ids with the padding id.
"""

from __future__ import annotations

from typing import Any

from strop.data.cases import Case
from strop.data.chat import Chat, Spans, Unrenderable, loses_calls
from strop.data.encode import Ask, Encoded, Encoder, Job, common_prefix
from strop.data.kinds import DatasetKind
from strop.data.messages import Message, is_hidden, is_learned
from strop.data.options import TokenizeOptions
from strop.data.truncate import Tokenized, cut_flat, overlong, scored, truncate

WHOLE = (DatasetKind.LANGUAGE_MODELING, DatasetKind.PROMPT_COMPLETION, DatasetKind.TOKENIZED)


class TreeBuilder:
    """Builds token trees of one kind with one tokenizer.

    Args:
        kind: of the rows.
        encoder: the tokenizer.
        options: what may be set about trees.
        masks: tell what of a conversation is learned. Who only reads needs none, and has it faster.
    """

    def __init__(self, kind: DatasetKind, encoder: Encoder, options: TokenizeOptions, *, masks: bool = True) -> None:
        self.kind, self.encoder, self.options = kind, encoder, options
        self.chat = Chat(encoder)
        self._masks = masks

    def build_all(self, cases: list[Case]) -> list[Tokenized]:
        """The trees of some cases, with a handful of tokenizer calls for all of them."""
        return self.encoder.run(self.build(case) for case in cases)

    def uncut(self, cases: list[Case]) -> list[Tokenized]:
        """The trees of some cases before anything is cut, or left out because nothing of it is scored.

        Raises:
            Unrenderable: a conversation that the template cannot render.
        """
        return self.encoder.run(self._branches(case) for case in cases)

    def build(self, case: Case) -> Job[Tokenized]:
        """The tree of a case, cut to length; `left_out` is set where nothing can be learned from it."""
        return self._within_positions((yield from self._build(case)))

    def _within_positions(self, tree: Tokenized) -> Tokenized:
        """The tree, if the model has a position for each of its tokens and of those sampled after a prompt."""
        limit, options, size = self.options.learned_positions, self.options, tree.branch
        if options.split_overlong and options.max_length is not None:
            size = min(size, options.max_length)
        sampled = (options.max_completion_length or 0) if self.kind is DatasetKind.PROMPT_ONLY else 0
        if limit is None or tree.left_out is not None or size + sampled <= limit:
            return tree
        more = f" and max_completion_length={sampled}" if sampled else ""
        name = "max_prompt_length" if sampled else "max_length"
        detail = f"{size} tokens{more}, but the model has {limit} positions: set {name}={max(limit - sampled, 1)}"
        return Tokenized.without("positions", detail, size)

    def _build(self, case: Case) -> Job[Tokenized]:
        try:
            if self.kind is DatasetKind.PROMPT_ONLY:
                return (yield from self._prompt_only(case))
            if self.kind in WHOLE and (case.prompt is None or self.options.completion_only_loss is False):
                return (yield from self._whole(case))
            tree = yield from self._branches(case)
            return tree if tree.left_out is not None else (yield from self._fit(tree, case))
        except Unrenderable as problem:
            return Tokenized.without("unrenderable", str(problem))

    # ---- prompt and completions

    def _branches(self, case: Case) -> Job[Tokenized]:
        if case.ids:
            masks = None if case.masks is None else [list(mask) for mask in case.masks]
            return Tokenized(list(case.prompt), [list(ids) for ids in case.completions], masks)
        if self.kind is DatasetKind.STEPWISE:
            return (yield from self._stepwise(case))
        return (yield from (self._chat_branches(case) if case.chat else self._text_branches(case)))

    def _text_branches(self, case: Case) -> Job[Tokenized]:
        prompt, *joint = yield Ask([case.prompt, *(case.prompt + said for said in case.completions)])
        shared = min(common_prefix(prompt.ids, whole.ids) for whole in joint)
        tree = Tokenized(prompt.ids, [whole.ids[len(prompt.ids) :] for whole in joint])
        if shared < len(prompt.ids):
            if self.options.boundary == "error":
                return self._boundary_error(prompt.ids, shared)
            tree.flag("cut" if self.options.boundary == "common_prefix" else "apart")
            if self.options.boundary == "common_prefix":
                tree.prompt_ids = prompt.ids[:shared]
                tree.completions = [whole.ids[shared:] for whole in joint]
            else:
                alone = yield from self.encoder.continuing(list(case.completions))
                for index, whole in enumerate(joint):
                    if common_prefix(prompt.ids, whole.ids) < len(prompt.ids):
                        tree.completions[index] = alone[index]
        if not all(tree.completions):
            return Tokenized.without("empty_completion", "a completion has no tokens")
        tree.prompt_ids = self.encoder.with_prefix(tree.prompt_ids)
        tree.completions = [self.encoder.with_eos(ids) for ids in tree.completions]
        return tree

    def _boundary_error(self, prompt: list[int], shared: int) -> Tokenized:
        return Tokenized.without("boundary", f"they agree on {shared} of the prompt's {len(prompt)} tokens")

    def _chat_branches(self, case: Case) -> Job[Tokenized]:
        prompt_text = self.chat.render_prompt(case.prompt, case.tools, case.template_kwargs)
        joined = [join_turns(case.prompt, said) for said in case.completions]
        texts = [self.chat.render_whole(messages, case.tools, case.template_kwargs) for messages, _ in joined]
        masked = [
            self._masks and (any(m["role"] != "assistant" or is_hidden(m) for m in said) or len(said) > 1)
            for said in case.completions
        ]
        prompt, *joint = yield Ask([prompt_text, *texts], any(masked) and self.encoder.is_fast)
        shared = min(common_prefix(prompt.ids, whole.ids) for whole in joint)
        if shared < len(prompt.ids) and self.options.boundary == "error":
            return self._boundary_error(prompt.ids, shared)
        starts = [0] * len(texts)
        tree = Tokenized(prompt.ids[:shared], [whole.ids[shared:] for whole in joint])
        if shared < len(prompt.ids):
            apart = self.options.boundary == "separate" and all(text.startswith(prompt_text) for text in texts)
            tree.flag("apart" if apart else "cut")
            if apart:
                starts = [len(prompt_text)] * len(texts)
                rests = [text[len(prompt_text) :] for text in texts]
                if any(masked):
                    joint = yield Ask(rests, self.encoder.is_fast)
                else:
                    joint = [Encoded(ids) for ids in (yield from self.encoder.continuing(rests))]
                tree.prompt_ids, shared = prompt.ids, 0
                tree.completions = [part.ids for part in joint]
        if any(masked):
            tree.masks = [[1] * len(ids) for ids in tree.completions]
        for index, (messages, first) in enumerate(joined):
            if masked[index] and tree.masks is not None:
                mask, complete = yield from self._answer_mask(
                    case, messages, texts[index], joint[index], first, starts[index]
                )
                if any(is_learned(message) is False for message in case.completions[index]):
                    mask = yield from self._hide(case, messages, texts[index], joint[index], mask, starts[index])
                tree.masks[index] = mask[shared:]
                if not complete:
                    tree.flag("last_turn")
        if any(loses_calls(messages, text) for (messages, _), text in zip(joined, texts, strict=True)):
            tree.flag("calls_lost")
        return self._note_stop(tree)

    def _note_stop(self, tree: Tokenized) -> Tokenized:
        if not all(tree.completions):
            return Tokenized.without("empty_completion", "the template prints nothing for a completion")
        if not all(self._learns_stop(ids, tree.mask(index)) for index, ids in enumerate(tree.completions)):
            tree.flag("no_stop")
        return tree

    def _learns_stop(self, ids: list[int], mask: list[int]) -> bool:
        """Whether a stop id is among the last scored tokens (a line break may follow it)."""
        learned = [token for token, on in zip(ids, mask, strict=True) if on]
        return any(token in self.encoder.stops for token in learned[-3:])

    def _answer_mask(
        self, case: Case, messages: list[Message], text: str, found: Encoded, first: int = 0, start: int = 0
    ) -> Job[tuple[list[int], bool]]:
        """The 0/1 mask of what the assistant wrote in `text`, and whether all of its turns are in it.

        Args:
            found: the ids of `text` from its character `start` on.
            first: the message that is the first to be learned.
        """
        if not start and self.encoder.is_fast and self.chat.marks_generation(case.tools):
            ids, mask = self.chat.generation_mask(messages, case.tools, case.template_kwargs)
            size = len(found.ids)
            if ids[:size] == found.ids and any(mask):
                return self._end_at_stop(found.ids, mask[:size]), True
        spans, complete = self.chat.answer_spans(messages, case.tools, case.template_kwargs, text, first)
        return (yield from self._mask_of_spans(text, found, spans, start)), complete

    def _hide(
        self, case: Case, messages: list[Message], text: str, found: Encoded, mask: list[int], start: int = 0
    ) -> Job[list[int]]:
        """A mask without what is never scored: what tools said, and messages that say so themselves."""
        spans = self.chat.hidden_spans(messages, case.tools, case.template_kwargs, text)
        if spans is None:
            if any(is_learned(message) is False for message in messages):
                raise Unrenderable("it rewrites history, so a message that is not to be learned cannot be found in it")
            return mask
        off = yield from self._mask_of_spans(text, found, spans, start)
        return [on & (1 - hidden) for on, hidden in zip(mask, off, strict=True)]

    def _end_at_stop(self, ids: list[int], mask: list[int]) -> list[int]:
        """A template's mask without what its marks enclose after an end of turn (a line break, as a rule)."""
        if not self.options.strip_after_eos:
            return mask
        mask = list(mask)
        tail: list[int] = []
        for position, on in enumerate([*mask, 0]):
            if on and ids[position] in self.encoder.stops:
                tail = [position]
            elif on and tail:
                tail.append(position)
            elif tail:
                after = [ids[p] for p in tail[1:]]
                if after and not self.encoder.tokenizer.decode(after).strip():
                    for p in tail[1:]:
                        mask[p] = 0
                tail = []
        return mask

    def _mask_of_spans(self, text: str, whole: Encoded, spans: Spans, first: int) -> Job[list[int]]:
        """Which tokens overlap a span of characters; without offsets, the ids of the text up to its ends tell.

        Args:
            whole: the ids of `text` from its character `first` on.
        """
        text = text[first:]
        spans = [(max(start - first, 0), end - first) for start, end in spans if end > first]
        mask = [0] * len(whole.ids)
        if whole.offsets is not None:
            position = 0
            for start, end in spans:  # spans and tokens both run from left to right
                while position < len(mask) and whole.offsets[position][1] <= start:
                    position += 1
                while position < len(mask) and whole.offsets[position][0] < end:
                    mask[position] = int(whole.offsets[position][1] > whole.offsets[position][0])
                    position += 1
            return mask
        ends = yield Ask([text[:cut] for span in spans for cut in span])
        cuts = [common_prefix(part.ids, whole.ids) for part in ends]
        for start, end in zip(cuts[::2], cuts[1::2], strict=True):
            mask[start:end] = [1] * (end - start)
        return mask

    # ---- whole texts and conversations

    def _whole(self, case: Case) -> Job[Tokenized]:
        """A text or conversation learned as a whole; up to the first scored token it becomes the prompt of the tree."""
        flags: tuple[str, ...] = ()
        if case.chat:
            ids, mask, flags = yield from self._whole_chat(case)
        elif case.ids:
            ids = (case.prompt or []) + case.completions[0]
            mask = [1] * len(case.prompt or []) + (case.masks[0] if case.masks else [1] * len(case.completions[0]))
        elif case.prompt is None:
            (text,) = yield Ask([case.completions[0]])
            ids = self.encoder.with_eos(self.encoder.with_prefix(text.ids))
            mask = [1] * len(ids)
        else:
            tree = yield from self._text_branches(case)
            if tree.left_out is not None:
                return tree
            ids, flags = tree.prompt_ids + tree.completions[0], tree.flags
            mask = [1] * len(ids)
        return self._split_at_first_scored(ids, mask, flags)

    def _split_at_first_scored(self, ids: list[int], mask: list[int], flags: tuple[str, ...]) -> Tokenized:
        uncut = len(ids)
        if self.options.filter_overlong and self.options.max_length is not None and len(ids) > self.options.max_length:
            return Tokenized.without("too_long", f"{uncut} tokens, max_length is {self.options.max_length}", uncut)
        ids, mask, cut = cut_flat(ids, mask, self.options, self._bos_of(ids))
        if not any(mask):
            why = "nothing before the cut is scored" if cut else "no token of it is to be scored"
            return Tokenized.without("nothing_scored", why, uncut)
        first, end = mask.index(1), len(mask) - mask[::-1].index(1)
        tree = Tokenized(ids[:first], [ids[first:end]], [mask[first:end]], flags=flags, uncut=uncut)
        if cut:
            tree.flag("truncated")
        tree.flag_split(self.options)
        return self._check_scored(tree)

    def _whole_chat(self, case: Case) -> Job[tuple[list[int], list[int], tuple[str, ...]]]:
        messages: list[Message] = case.completions[0]
        if case.prompt is not None:
            messages, _ = join_turns(case.prompt, messages)
        text = self.chat.render_whole(messages, case.tools, case.template_kwargs)
        hidden = any(map(is_hidden, messages))
        masked = self.options.assistant_only_loss or hidden
        (whole,) = yield Ask([text], masked and self.encoder.is_fast)
        mask = [1] * len(whole.ids)
        flags: tuple[str, ...] = ()
        if masked:
            rewritten = self.chat.hidden_spans(messages, case.tools, case.template_kwargs, text) is None
            if self.options.assistant_only_loss or rewritten:
                mask, complete = yield from self._answer_mask(case, messages, text, whole)
                flags = () if complete else ("last_turn",)
            if hidden:
                mask = yield from self._hide(case, messages, text, whole, mask)
        if loses_calls(messages, text):
            flags = (*flags, "calls_lost")
        if any(mask) and not self._learns_stop(whole.ids, mask):
            flags = (*flags, "no_stop")
        return whole.ids, mask, flags

    # ---- prompts alone, steps

    def _prompt_only(self, case: Case) -> Job[Tokenized]:
        ids = yield from self._prompt_ids(case)
        if not ids:
            return Tokenized.without("empty_prompt", "it has no tokens")
        tree = Tokenized(ids, [])
        limit = self.options.max_prompt_length
        if limit is not None and len(ids) > limit and not self.options.filter_overlong:
            header = yield from self._header(case, ids)
            tree = truncate(tree, self.options, header, self._bos_of(ids))
        too_long = overlong(tree, self.options)
        if too_long is not None:
            return Tokenized.without("too_long", too_long, len(ids))
        tree.uncut = len(ids)
        return tree

    def _prompt_ids(self, case: Case) -> Job[list[int]]:
        if case.ids:
            return list(case.prompt)
        if case.chat:
            (found,) = yield Ask([self.chat.render_prompt(case.prompt, case.tools, case.template_kwargs)])
            return found.ids
        (found,) = yield Ask([case.prompt])
        return self.encoder.with_prefix(found.ids)

    def _stepwise(self, case: Case) -> Job[Tokenized]:
        """Prompt, then every step and its separator, tokenised one by one; separators' last tokens are marked."""
        prompt = yield from self._prompt_ids(case)
        separator, *steps = yield from self.encoder.continuing([self.options.step_separator, *case.completions])
        if not separator:
            return Tokenized.without("nothing_scored", "step_separator has no tokens")
        ids: list[int] = []
        mask: list[int] = []
        for step in steps:
            ids += step + separator
            mask += [0] * (len(step) + len(separator) - 1) + [1]
        return Tokenized(prompt, [ids], [mask], list(case.extras["labels"]))

    # ---- limits

    def _bos_of(self, ids: list[int]) -> int:
        return int(bool(ids) and ids[0] == getattr(self.encoder.tokenizer, "bos_token_id", None))

    def _header(self, case: Case, ids: list[int]) -> Job[int]:
        """How many leading prompt tokens are BOS and the system header (rule R6).

        The header is what the prompt shares with a conversation of the same system message and an empty question;
        that covers default system prompts too.
        """
        if not case.chat:
            return self._bos_of(ids)
        system = [message for message in case.prompt[:1] if message["role"] in ("system", "developer")]
        try:
            text = self.chat.render([*system, {"role": "user", "content": ""}], case.tools, case.template_kwargs)
        except Unrenderable:
            return self._bos_of(ids)
        (found,) = yield Ask([text])
        return common_prefix(found.ids, ids)

    def _fit(self, tree: Tokenized, case: Case) -> Job[Tokenized]:
        """The tree cut to the limits; `uncut` says how long it was."""
        uncut = tree.branch
        fitted = yield from self._cut(tree, case)
        fitted.uncut = uncut
        return fitted

    def _cut(self, tree: Tokenized, case: Case) -> Job[Tokenized]:
        too_long = overlong(tree, self.options)
        if too_long is not None:
            if self.options.filter_overlong:
                return Tokenized.without("too_long", too_long)
            header = yield from self._header(case, tree.prompt_ids)
            tree = truncate(tree, self.options, header, self._bos_of(tree.prompt_ids))
        if tree.left_out is not None:
            return tree
        if self.kind is DatasetKind.PREFERENCE and tree.completions[0] == tree.completions[1]:
            return Tokenized.without("cut_identical", f"{len(tree.completions[0])} tokens are left of each")
        if tree.labels is not None:
            tree.labels = tree.labels[: sum(tree.mask(0))]
            return tree if tree.labels else Tokenized.without("nothing_scored", "no step end is left")
        return self._check_scored(tree)

    def _check_scored(self, tree: Tokenized) -> Tokenized:
        counts = [scored(tree.prompt_ids, tree.mask(index)) for index in range(len(tree.completions))]
        if min(counts) < 1:
            return Tokenized.without("nothing_scored", "a completion has no scored token")
        if tree.masks is not None and all(map(all, tree.masks)):
            tree.masks = None
        return tree


def join_turns(prompt: list[Message], said: list[Message]) -> tuple[list[Message], int]:
    """Prompt and completion as one conversation, and the number of the completion's first message.

    A prompt that ends in an assistant message is an answer begun: the completion's first message continues it.
    """
    if prompt[-1]["role"] != "assistant" or said[0]["role"] != "assistant":
        return prompt + said, len(prompt)
    begun: dict[str, Any] = {**prompt[-1], **said[0], "content": prompt[-1]["content"] + said[0]["content"]}
    return [*prompt[:-1], begun, *said[1:]], len(prompt) - 1
