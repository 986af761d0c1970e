"""Toy tokenizers with the habits of real ones: what is added by itself, which special tokens and chat templates exist.

All have the vocabulary of strop's own toys (at most 300 ids).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from strop.testing.tokenizers import CHAT, CHATML, PLAIN, trained

CHATML_GENERATION = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Marks what the assistant writes, its end of turn included."""
CHATML_THINK = (
    "{% for message in messages %}"
    "{% set content = message['content'] %}"
    "{% if message['role'] == 'assistant' and not loop.last and '</think>' in content %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Rewrites history: the thinking of every assistant turn but the last is left out."""
CHATML_TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\nTools: ' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1]['role'] != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\n<r>' + message['content'] + '</r>' }}"
    "{% if loop.last or messages[loop.index0 + 1]['role'] != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{% for call in message.tool_calls or [] %}{{ '<c>' + (call.function.arguments | tojson) + '</c>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As Qwen2.5's: tools in the system turn, answers of tools gathered in one user turn."""
CHATML_STRICT = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and not loop.first %}{{ raise_exception('system must come first') }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Refuses a system message that does not come first."""
LLAMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[U] ' + message['content'] + ' [/U]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
"""As Llama-2's: renders BOS itself, opens an answer with nothing."""


def _add_bos(tokenizer: Tokenizer) -> None:
    bos = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[bos])


def _add_both(tokenizer: Tokenizer) -> None:
    ids = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=ids
    )


def _add_space(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


VARIANTS: dict[str, tuple[dict[str, str], str | None, Callable[[Tokenizer], None] | None]] = {
    "plain": (PLAIN, None, None),
    "no_bos": ({"eos_token": "</s>", "pad_token": "<pad>"}, None, None),
    "no_pad": ({"eos_token": "</s>", "bos_token": "<s>"}, None, None),
    "no_eos": ({"pad_token": "<pad>"}, None, None),
    "pad_is_eos": ({**PLAIN, "pad_token": "</s>"}, None, None),
    "auto_bos": (PLAIN, None, _add_bos),
    "auto_both": (PLAIN, None, _add_both),
    "prefix_space": (PLAIN, None, _add_space),
    "chatml": (CHAT, CHATML, None),
    "chatml_pad_is_eos": ({**CHAT, "pad_token": "<|im_end|>"}, CHATML, None),
    "chatml_generation": (CHAT, CHATML_GENERATION, None),
    "chatml_think": (CHAT, CHATML_THINK, None),
    "chatml_tools": (CHAT, CHATML_TOOLS, None),
    "chatml_strict": (CHAT, CHATML_STRICT, None),
    "chatml_other_eos": ({**CHAT, "eos_token": "</s>"}, CHATML, None),
    "llama": (PLAIN, LLAMA, _add_bos),
}
"""Name -> special tokens, chat template, what the tokenizer adds by itself."""


def toy_tokenizer(variant: str = "plain", **changes: Any) -> PreTrainedTokenizerFast:
    """A fresh toy tokenizer.

    Args:
        variant: a key of `VARIANTS`: `plain` adds nothing by itself; `no_bos`, `no_pad` and `no_eos` lack a token;
            `pad_is_eos`; `auto_bos` puts BOS before every text, `auto_both` EOS after it too; `prefix_space` puts a
            space before every text, as SentencePiece does; `chatml*` have chat templates and end turns in
            `<|im_end|>`, which is EOS too except in `chatml_other_eos`; `llama` renders BOS itself and adds it by
            itself.
        changes: arguments of `PreTrainedTokenizerFast` that replace the variant's.
    """
    special, template, post = VARIANTS[variant]
    tokenizer = trained()
    if post is not None:
        post(tokenizer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**special, "chat_template": template, **changes})
