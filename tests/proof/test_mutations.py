"""The proof cannot rot: every mutation fits the source, every test that it names exists, and a sample is run."""

from __future__ import annotations

import ast
import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import pytest
from proof.fresh import Outcome
from proof.mutation import Edit, Mutation, ProofError, applied, misfits
from proof.mutations import MUTATIONS
from proof.page import markdown, summary
from proof.promise import Promise
from proof.promises import PROMISES
from proof.result import Proof, Result
from proof.run import ROOT, choose, prove

QUICK = [mutation for mutation in MUTATIONS if mutation.quick]


@cache
def functions_of(file: str) -> frozenset[str]:
    """Names of the test functions of a file."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def problem_of(test: str) -> str:
    file, _, name = test.partition("::")
    if not (ROOT / file).exists():
        return f"there is no {file}"
    return f"{file} has no {name}" if name and name.split("[")[0] not in functions_of(file) else ""


def proved(mutations: Sequence[Mutation]) -> Proof:
    """`prove` in a process of its own: one process has one fork server, and other tests fill theirs with this strop."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(prove, mutations, together=True).result()


def test_every_mutation_fits_the_source() -> None:
    assert not [line for mutation in MUTATIONS for line in misfits(mutation, ROOT)]


def test_every_named_test_exists() -> None:
    named = dict.fromkeys(test for mutation in MUTATIONS for test in mutation.tests)
    named |= dict.fromkeys(test for promise in PROMISES for test in promise.further)
    assert not [problem for test in named if (problem := problem_of(test))]


@pytest.mark.slow
def test_every_named_case_of_a_test_exists() -> None:
    cases = list(dict.fromkeys(test for mutation in MUTATIONS for test in mutation.tests))
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *cases]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]


def test_every_promise_has_mutations_and_every_mutation_a_promise_and_tests() -> None:
    assert [promise.number for promise in PROMISES] == list(range(1, 35))
    assert {n for mutation in MUTATIONS for n in mutation.promises} == {promise.number for promise in PROMISES}
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)
    for mutation in MUTATIONS:
        assert mutation.edits and mutation.tests and mutation.history.endswith("."), mutation.name


def test_the_written_proof_knows_every_mutation() -> None:
    page = (ROOT / "docs" / "proof.md").read_text(encoding="utf-8")
    missing = [mutation.name for mutation in MUTATIONS if f"### {mutation.name}\n" not in page]
    assert not missing, f"run make proof, which writes docs/proof.md: {missing} are not in it"


# ---- a sample, and the harness itself

HARMLESS = Edit("losses/nll.py", "    return -logps\n", "    return logps * -1\n")
BROKEN = Edit("losses/nll.py", "    return -logps\n", "    return -undefined_name\n")
UNREADABLE = Edit("losses/nll.py", "    return -logps\n", "    return -logps +\n")
NLL = ("tests/losses/test_nll.py::test_uniform_model_has_log_vocabulary",)


@pytest.fixture(scope="module")
def tried() -> dict[str, Result]:
    edits = {"harmless": HARMLESS, "broken": BROKEN, "unreadable": UNREADABLE}
    mutations = [Mutation(name, (1,), "", (edit,), NLL) for name, edit in edits.items()]
    return {result.mutation.name: result for result in proved([*QUICK, *mutations]).results}


def test_a_sample_with_a_bug_of_every_room_is_caught(tried: dict[str, Result]) -> None:
    rooms = {edit.file.split("/")[0] for mutation in QUICK for edit in mutation.edits}
    assert rooms >= {"data", "engine", "losses", "model", "rewards", "rollout", "settings"}
    assert not [f"{name}: {tried[name].complaint}" for name in (m.name for m in QUICK) if not tried[name].proved]


def test_a_bug_that_no_test_notices_proves_nothing(tried: dict[str, Result]) -> None:
    assert not tried["harmless"].proved and tried["harmless"].complaint == "no test notices it"


@pytest.mark.parametrize("name", ["broken", "unreadable"])
def test_a_bug_that_breaks_the_module_proves_nothing(name: str, tried: dict[str, Result]) -> None:
    assert not tried[name].proved and tried[name].caught is None
    assert (
        "NameError" in tried[name].complaint
        or "SyntaxError" in tried[name].complaint
        or "exit code" in tried[name].complaint
    )


def test_a_text_that_does_not_occur_once_is_an_error(tmp_path: Path) -> None:
    lost = Mutation("lost", (1,), "", (Edit("losses/nll.py", "no such text", ""),), NLL)
    with pytest.raises(ProofError, match=r"mutation 'lost': the text to replace occurs 0 times in losses/nll\.py"):
        prove([lost])
    often = Mutation("often", (1,), "", (Edit("losses/nll.py", "logps", "x"),), NLL)
    with pytest.raises(ProofError, match=r"'often'.*occurs \d+ times"), applied(often, ROOT):
        raise AssertionError("it was applied")


def test_a_copy_is_as_it_was_afterwards(tmp_path: Path) -> None:
    file = tmp_path / "src" / "strop" / "losses" / "nll.py"
    file.parent.mkdir(parents=True)
    file.write_text("def nll_loss(logps):\n    return -logps\n")
    with applied(Mutation("bug", (1,), "", (HARMLESS,), NLL), tmp_path):
        assert "* -1" in file.read_text()
    assert file.read_text() == "def nll_loss(logps):\n    return -logps\n"


@pytest.fixture
def verdict_of() -> Callable[..., str]:
    def verdict(caught: bool, open: tuple[str, ...] = (), promises: tuple[int, ...] = (1,)) -> str:
        promise = Promise(1, "title", "text", ("tests/options",), open)
        found = {"test": NLL[0], "phase": "call", "error": "AssertionError", "message": ""} if caught else None
        proof = Proof([Result(Mutation("bug", promises, "It was.", (HARMLESS,), NLL), found)], [promise], 61.0)
        assert "1 min 1 s" in summary(proof) and proof.verdict(promise) in markdown(proof)
        assert proof.tests(promise) == [*(["tests/losses/test_nll.py"] if 1 in promises else []), "tests/options"]
        return proof.verdict(promise)

    return verdict


def test_verdicts(verdict_of: Callable[..., str]) -> None:
    assert verdict_of(True) == "proved"
    assert verdict_of(True, open=("something",)) == "in part"
    assert verdict_of(False) == verdict_of(True, promises=(2,)) == "open"


def test_only_failing_assertions_count() -> None:
    failure = {"test": "t", "phase": "call", "error": "AssertionError", "message": "m"}
    assert Outcome(1, [failure]).caught == failure
    for other in ({"phase": "setup"}, {"error": "ImportError"}, {"error": "NameError"}):
        assert Outcome(1, [{**failure, **other}]).caught is None
    assert Outcome(2, [failure]).caught is None and Outcome(None).caught is None and Outcome(0).passed


def test_mutations_are_chosen_by_name_and_promise() -> None:
    assert [m.name for m in choose(None, ["double-eos"])] == ["double-eos"]
    assert {13} <= {n for m in choose([13], None) for n in m.promises}
    with pytest.raises(SystemExit, match="no such mutation: doubel-eos"):
        choose(None, ["doubel-eos"])
