"""The result of a run: a table in the terminal, and docs/proof.md."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from proof.promise import Promise
from proof.result import Proof, Result

STYLES = {"proved": "green", "in part": "yellow", "open": "red"}


def show(proof: Proof) -> None:
    """The table promise -> tests -> mutations -> result."""
    table = Table("#", "promise", "tests", "mutations", "result", title=None, show_lines=True)
    for promise in proof.promises:
        verdict = proof.verdict(promise)
        table.add_row(
            str(promise.number),
            promise.title,
            "\n".join(short(test) for test in proof.tests(promise)) or "none",
            "\n".join(f"{'' if r.proved else 'NOT CAUGHT '}{r.mutation.name}" for r in proof.of(promise)) or "none",
            f"[{STYLES[verdict]}]{verdict}[/]" + "".join(f"\nopen: {text}" for text in reasons(proof, promise)),
        )
    Console(width=160).print(table)
    print(summary(proof))


def summary(proof: Proof) -> str:
    caught = sum(result.proved for result in proof.results)
    verdicts = [proof.verdict(promise) for promise in proof.promises]
    counts = ", ".join(f"{verdicts.count(name)} {name}" for name in STYLES if name in verdicts)
    minutes, rest = divmod(round(proof.seconds), 60)
    return (
        f"{caught} of {len(proof.results)} mutations caught; {len(verdicts)} promises: {counts}. "
        f"The run took {minutes} min {rest} s."
    )


def reasons(proof: Proof, promise: Promise) -> list[str]:
    """What keeps a promise from being proved."""
    found = list(promise.open)
    if not proof.of(promise):
        found.append("no mutation")
    return found + [f"{r.mutation.name}: {r.complaint}" for r in proof.of(promise) if not r.proved]


def short(test: str) -> str:
    return test.removeprefix("tests/")


def markdown(proof: Proof) -> str:
    """docs/proof.md."""
    lines = [
        "# The proof",
        "",
        "Written by `make proof`; do not edit. Every promise is tied to tests, and bugs that libraries once had are",
        "put back into a copy of the source, one at a time: the tests that are named with a bug must pass without it",
        "and fail with it. `proved` means that all bugs listed under a promise are caught. `in part` means the same,",
        "and that something the promise says has no test of this kind yet. `open` means that it is not proved.",
        "",
        f"**{summary(proof)}**",
        "",
        "| # | promise | tests | mutations | result |",
        "|---|---|---|---|---|",
    ]
    for promise in proof.promises:
        verdict = proof.verdict(promise)
        tests = "<br>".join(f"`{short(test)}`" for test in proof.tests(promise)) or "none"
        names = "<br>".join(f"[{r.mutation.name}](#{r.mutation.name})" for r in proof.of(promise)) or "none"
        result = "<br>".join([f"**{verdict}**", *(f"open: {cell(text)}" for text in reasons(proof, promise))])
        lines.append(f"| {promise.number} | **{promise.title}**. {promise.text} | {tests} | {names} | {result} |")
    lines += ["", "## The bugs", ""]
    for result in proof.results:
        lines += entry(result)
    return "\n".join(lines).rstrip() + "\n"


def entry(result: Result) -> list[str]:
    """One bug: its history, where it was put, and the test that fails."""
    mutation = result.mutation
    files = ", ".join(f"`{file}`" for file in dict.fromkeys(edit.file for edit in mutation.edits))
    numbers = ", ".join(map(str, mutation.promises))
    lines = [f"### {mutation.name}", "", f"{mutation.history} Put into {files}; promise {numbers}."]
    if result.proved and result.caught is not None:
        error, test = result.caught["error"], short(result.caught["test"])
        lines.append(f"Caught by `{test}` in {result.seconds:.1f} s ({error}).")
    else:
        lines.append(f"**Not caught**: {result.complaint}.")
    return [*lines, ""]


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
