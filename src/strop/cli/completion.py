"""`strop completion bash`: a script that lets the shell complete verbs and flags."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence

from strop.errors import ConfigError, did_you_mean
from strop.methods.registry import BY_VERB

TITLE = """usage: strop completion SHELL      Prints what makes SHELL (bash, zsh or fish) complete verbs and flags.

  bash   strop completion bash > ~/.local/share/bash-completion/completions/strop
  zsh    strop completion zsh > ~/.strop-completion; source it in ~/.zshrc
  fish   strop completion fish > ~/.config/fish/completions/strop.fish"""


def run(argv: list[str]) -> int:
    if argv[0] not in SCRIPTS:
        raise ConfigError(f"{argv[0]}: choose one of {', '.join(SCRIPTS)}.{did_you_mean(argv[0], SCRIPTS)}")
    print(SCRIPTS[argv[0]](flags_by_verb()))
    return 0


def flags_by_verb() -> dict[str, list[str]]:
    """Every verb with its flags; written into the script, as asking for them would take the shell seconds."""
    from strop.cli import TOOLS
    from strop.cli.train import flag_groups

    found = {}
    for verb, method in BY_VERB.items():
        found[verb] = [flag.name for flags in flag_groups(method).values() for flag in flags] + ["config", "help"]
    for tool in TOOLS:
        module = importlib.import_module(f"strop.cli.{tool.replace('-', '_')}")
        found[tool] = [flag.name for flag in getattr(module, "FLAGS", ())] + ["help"]
    return found


def bash(flags: Mapping[str, Sequence[str]]) -> str:
    """Flags where a word begins with a dash, methods where they may follow, else files."""
    listed = {verb: " ".join(f"--{name}" for name in names) for verb, names in flags.items()}
    cases = "\n".join(f"    {verb}) flags='{names}' ;;" for verb, names in listed.items())
    return f"""_strop() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" flags=''
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W '{" ".join(flags)}' -- "$word"))
    return
  fi
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  if [ "$COMP_CWORD" -eq 2 ] && [[ " plan doctor " == *" ${{COMP_WORDS[1]}} "* ]] && [[ "$word" != -* ]]; then
    COMPREPLY=($(compgen -W '{" ".join(BY_VERB)}' -- "$word"))
  elif [[ "$word" == -* ]]; then
    COMPREPLY=($(compgen -W "$flags" -- "$word"))
  fi
}}
complete -o default -F _strop strop"""


def zsh(flags: Mapping[str, Sequence[str]]) -> str:
    """The same, by zsh's way of running completions of bash."""
    return f"autoload -Uz compinit bashcompinit\ncompinit\nbashcompinit\n{bash(flags)}"


def fish(flags: Mapping[str, Sequence[str]]) -> str:
    """A line for each verb, and for each of its flags."""
    lines = [f"complete -c strop -n __fish_use_subcommand -a {verb}" for verb in flags]
    lines += [
        f"complete -c strop -n '__fish_seen_subcommand_from {verb}' -l {name}"
        for verb, names in flags.items()
        for name in names
    ]
    return "\n".join(lines)


SCRIPTS = {"bash": bash, "zsh": zsh, "fish": fish}
