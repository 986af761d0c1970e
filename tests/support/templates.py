"""Tiny chat templates, each with one habit of a family of real ones."""

from __future__ import annotations

import re
from typing import Any

from strop.testing.tokenizers import toy_tokenizer

TURN = "{{ '<|im_start|>' + m.role + '\n' }}"
OPEN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
SHOW = "{% if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
CALLS = (
    '{% for call in m.tool_calls or [] %}{{ \'<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \' + '
    "(call.function.arguments | tojson) + '}\n</tool_call>' }}{% endfor %}"
)
ANSWERS = (
    "{% if m.role == 'tool' %}{% if messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\n<r>' + m.content + '</r>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}{% else %}"
)
THOUGHT = "{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}"

GATHERED = (
    SHOW + "{% for m in messages %}" + ANSWERS + TURN + "{{ m.content }}" + CALLS
    + "{{ '<|im_end|>\n' }}{% endif %}{% endfor %}" + OPEN
)  # fmt: skip
"""Answers of one turn in one turn of the user, as Qwen 2.5 has them."""
FORGETFUL = (
    SHOW + "{% set ns = namespace(asked=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.asked = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}" + ANSWERS + TURN
    + "{% if m.reasoning_content and loop.index0 > ns.asked %}" + THOUGHT + "{% endif %}{{ m.content }}" + CALLS
    + "{{ '<|im_end|>\n' }}{% endif %}{% endfor %}" + OPEN
)  # fmt: skip
"""Leaves out the thoughts before the last turn of the user, as Qwen 3 does."""
OPENED = FORGETFUL.replace("assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}")
"""Opens the thoughts in the generation prompt, as Qwen 3.5 does."""
ENDLESS = (
    SHOW + "{% for m in messages %}{% if m.role == 'tool' %}{% if messages[loop.index0 - 1].role != 'tool' %}"
    "{{ '<|observation|>' }}{% endif %}{{ '\n<r>' + m.content + '</r>' }}{% else %}"
    "{{ '<|' + m.role + '|>\n' + m.content }}{% for call in m.tool_calls or [] %}{{ '\n<tool_call>' + "
    "call.function.name }}{% for key, value in call.function.arguments.items() %}{{ '\n<arg_key>' + key + "
    "'</arg_key>\n<arg_value>' + (value | string) + '</arg_value>' }}{% endfor %}{{ '\n</tool_call>' }}{% endfor %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)  # fmt: skip
"""Ends no turn: the header of the next one does, as GLM's."""
SINGLE = (
    SHOW + "{% for m in messages %}{% if m.tool_calls %}{% if m.tool_calls | length > 1 %}"
    "{{ raise_exception('one call at once') }}{% endif %}{{ '<|im_start|>assistant\n{\"name\": \"' + "
    "m.tool_calls[0].function.name + '\", \"parameters\": ' + (m.tool_calls[0].function.arguments | tojson) + "
    "'}<|im_end|>' }}{% elif m.role == 'tool' %}{{ '<|im_start|>ipython\n' + (m.content | tojson) + '<|im_end|>' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + (m.content | trim) + '<|im_end|>' }}{% endif %}{% endfor %}" + OPEN
)  # fmt: skip
"""One bare JSON call in a turn, as Llama 3's."""
OTHER_END = (
    "{% for m in messages %}{% if m.role not in ('user', 'assistant') %}{{ raise_exception('roles') }}{% endif %}"
    "{{ '<start_of_turn>' + m.role + '\n' + (m.content | trim) + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>assistant\n' }}{% endif %}"
)
"""Ends turns in another token than the tokenizer's EOS, and knows no tools, as Gemma's."""
BLIND = "{% for m in messages %}" + TURN + "{{ m.content + '<|im_end|>\n' }}{% endfor %}" + OPEN
"""Prints neither tools nor calls, as SmolLM2's."""
DEAF = BLIND.replace("{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}")
"""Prints no answers of tools."""

KINDS = {
    "gathered": GATHERED, "forgetful": FORGETFUL, "opened": OPENED, "endless": ENDLESS, "single": SINGLE,
    "other_end": OTHER_END, "blind": BLIND, "deaf": DEAF,
}  # fmt: skip
SPECIAL = re.compile(r"<\|[\w/]+\|?>|<\w+_of_\w+>|<｜[^｜<>]+｜>|<\w+\|>")
ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|END_OF_TURN_TOKEN|>", "<｜end▁of▁sentence｜>", "<|return|>", "<|end|>", "<turn|>",
)  # fmt: skip
HEADERS = ("<|observation|>", "<|user|>", "<|call|>", "<|tool_response>", "<end_of_turn>")
"""Tokens that end turns and that a model's generation config knows, where the template has them."""


def tokenizer_with(template: str) -> tuple[Any, tuple[int, ...]]:
    """A toy tokenizer that has the special tokens of a template, and the ids that end turns beside its EOS."""
    tokenizer = toy_tokenizer("chatml")
    found = sorted({*SPECIAL.findall(template), *HEADERS} & {*SPECIAL.findall(template), *_written(template)})
    tokenizer.add_special_tokens({"additional_special_tokens": found})
    tokenizer.eos_token = next((end for end in ENDS if end in template), "</s>")
    tokenizer.bos_token, tokenizer.chat_template = "<s>", template
    known = tokenizer.get_added_vocab()
    return tokenizer, tuple(known[token] for token in HEADERS if token in known)


def _written(template: str) -> list[str]:
    return [token for token in HEADERS if token in template or (token == "<|user|>" and "'<|' + m.role" in template)]
