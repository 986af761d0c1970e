"""Text of a model, a file or a server as it may be shown: it does nothing, it ends, and it gives no secret away."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MASK = "***"
_LONGEST = 20_000

# Controls other than tab and line feed (escape sequences begin with one), and characters that turn the line around.
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]")
_SECRET_NAMES = re.compile(
    r"(^|_)(token|secret|password|passwd|passphrase|api_?key|access_?key|private_?key|authorization|credentials?|cookie)$",
    re.IGNORECASE,
)
_SPECIAL_TOKENS = re.compile(r"^(bos|eos|pad|unk|sep|cls|mask|decoder_start|image|video|audio|stop|end|start)_token$")
_SECRETS = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|AKIA[A-Z0-9]{16}|xox[abprs]-[\w-]{10,})|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)|(?<=[Bb]earer )[\w.~+/=-]{8,}"
)


def visible(text: str) -> str:
    """The text with every acting character written out: ESC is `\\x1b`."""
    return _ACTING.sub(lambda found: _written(found.group()), text)


def first_line(error: BaseException) -> str:
    """The first line of a message, with the next where it ends in a colon; the kind of an error that says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[: 2 if lines[:1] and lines[0].endswith(":") else 1]) or type(error).__name__


def bounded(text: str, most: int = _LONGEST) -> str:
    """The text, without its middle where it is longer than `most` characters."""
    if len(text) <= most:
        return text
    kept = max(most // 2, 1)
    return f"{text[:kept]} ... ({len(text) - 2 * kept:,} characters left out) ... {text[-kept:]}"


def masked(value: Any, name: str = "") -> Any:
    """A setting, or a table of settings, with secrets as `***`: by their name, and by their look.

    `eos_token` and its like are no secrets; None and the empty text stay.
    """
    if isinstance(value, Mapping):
        return {key: masked(each, str(key)) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(masked(each, name) for each in value) if type(value) in (list, tuple) else value
    if isinstance(value, (str, bytes)) and value and _SECRET_NAMES.search(name) and not _SPECIAL_TOKENS.match(name):
        return MASK
    return _SECRETS.sub(MASK, value) if isinstance(value, str) else value


def _written(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
