from __future__ import annotations

import functools
import os

import pytest

from strop.rewards.code_execution import run_code as run_code_behind

run_code = functools.partial(run_code_behind, allow_unsafe_code=True)
pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="needs POSIX processes"),
    pytest.mark.filterwarnings("ignore:Model-written code runs without a wall"),
]

PROGRAM = """
from __future__ import annotations
import asyncio, collections, math
from collections import Counter, deque, namedtuple
from math import isclose
from dataclasses import dataclass
import numpy as np

Point = namedtuple("Point", "x y")
LIMIT = 3
seen = []

class Wrong(ValueError): pass

@dataclass
class Vec:
    x: int
    y: int = 0
    def __add__(self, other): return Vec(self.x + other.x, self.y + other.y)
    def __lt__(self, other): return self.x < other.x

class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x); return self
    def pop(self):
        if not self.items: raise Wrong("empty", 7)
        return self.items.pop()
    def __len__(self): return len(self.items)
    def __iter__(self): return iter(self.items)
    def __getitem__(self, i): return self.items[i]
    def __enter__(self): return self
    def __exit__(self, *a): pass

def double(x): seen.append(x); return 2 * x
def sort_it(xs): xs.sort()
def fill(table): table["k"] = [1]
def apply(f, x): return f(x)
def count(text): return Counter(text)
def point(): return Point(1, 2)
def evens(n): yield from range(0, n, 2)
async def later(x): await asyncio.sleep(0); return x + 1
def fails(n): raise KeyError(n)
def same(x): return x
def array(): return np.arange(3)
def scalar(): return np.float64(0.5)
"""

PASSING = [
    "assert double(2) == 4 and double('a') == 'aa' and double(x=1.5) == 3.0",
    "assert type(same((1, [2], {3: {4}}))) is tuple and same((1, [2], {3: {4}})) == (1, [2], {3: {4}})",
    "for v in (None, True, 2**200, -1, 1.5, 'ü\\ud800', b'b', {1, 2}, frozenset(), 1j, range(3), ..., {(1, 2): 3}):\n"
    "    assert same(v) == v and type(same(v)) is type(v)",
    "from decimal import Decimal\nfrom fractions import Fraction\nassert same(Decimal('1.10')) == Decimal('1.10')\n"
    "assert same(Fraction(1, 3)) * 3 == 1",
    "xs = [3, 1, 2]\nassert sort_it(xs) is None\nassert xs == [1, 2, 3]",
    "inner = [2, 1]\nouter = [inner]\napply(lambda v: None, 1)\nsort_it(inner)\nassert outer == [[1, 2]]",
    "t = {}\nfill(t)\nassert t == {'k': [1]}",
    "assert apply(lambda x: x + 1, 3) == 4 and apply(len, [1, 2]) == 2 and apply(sorted, [2, 1]) == [1, 2]",
    "assert apply(double, 4) == 8",
    "assert count('aab') == {'a': 2, 'b': 1} and isinstance(count('a'), dict)\n"
    "assert count('aab').most_common(1) == [('a', 2)]",
    "assert point() == (1, 2) and point().x == 1 and len(point()) == 2 and list(point()) == [1, 2]",
    "assert list(evens(5)) == [0, 2, 4] and next(evens(3)) == 0 and 2 in evens(5)",
    "import asyncio\nassert asyncio.run(later(1)) == 2",
    "s = Stack()\ns.push(1).push(2)\n"
    "assert len(s) == 2 and s.pop() == 2 and list(s) == [1] and s[0] == 1 and s and 1 in s",
    "try:\n    Stack().pop()\n    raise SystemError\nexcept Wrong as e:\n    assert e.args == ('empty', 7)",
    "try:\n    Stack().pop()\n    raise SystemError\nexcept ValueError as e:\n    assert 'empty' in str(e)",
    "try:\n    fails(3)\n    raise SystemError\nexcept KeyError as e:\n    assert e.args == (3,)",
    "assert Vec(1) + Vec(2, 3) == Vec(3, 3) and Vec(1) != Vec(2) and Vec(1) < Vec(2) and (Vec(1) + Vec(2)).x == 3",
    "assert isinstance(Vec(1), Vec) and not isinstance(3, Vec) and not isinstance(Stack(), Vec)",
    "assert repr(Vec(1)) == 'Vec(x=1, y=0)' and str(Vec(1)).startswith('Vec') and f'{Vec(2).x}' == '2'",
    "v = Vec(1)\nv.x = 5\nassert v.x == 5 and hasattr(v, 'y') and not hasattr(v, 'z')",
    "with Stack() as s:\n    assert len(s) == 0",
    "assert LIMIT == 3",
    "assert 2 in seen\nseen.clear()\ndouble(9)\nassert seen == [9] and len(seen) == 1",
    "assert math.isclose(double(0.1), 0.2) and isclose(double(0.1), 0.2) and np.allclose(double(0.1), 0.2)",
    "assert deque([double(1)]) == deque([2]) and collections.Counter(same('aa')) == {'a': 2}",
    "assert (array() == np.array([0, 1, 2])).all() and scalar() == 0.5 and abs(scalar() - 0.25) < 0.3",
    "from solution import double as d, Stack\nassert d(1) == 2 and len(Stack()) == 0",
    "from solution import *\nassert double(1) == 2",
    "import solution\nassert solution.double(1) == 2",
]

FAILING = {
    "assert double(2) == 5": "AssertionError",
    "assert Vec(1) == 1": "AssertionError",
    "assert abs(Vec(1) - 0.5) < 1": "is not run",
    "assert Vec(1) < 5": "is not run",
    "same(object())": "only plain values",
    "same(unknown)": "NameError",
    "d = []\nfor _ in range(300): d = [d]\nsame(d)": "nested deeper",
    "same('x' * (20 << 20))": "more than",
    "from solution import missing": "ImportError",
    "def (": "SyntaxError",
}


@pytest.fixture(scope="module")
def verdicts():
    done = run_code(PROGRAM, tests=[*PASSING, *FAILING], timeout_seconds=30)
    assert done.status == "ok", done
    return dict(zip([*PASSING, *FAILING], zip(done.passed, done.errors, strict=True), strict=True))


@pytest.mark.parametrize("test", PASSING)
def test_an_honest_program_is_believed(test, verdicts):
    assert verdicts[test] == (True, "")


@pytest.mark.parametrize("test", FAILING)
def test_what_fails_and_what_is_refused_says_why(test, verdicts):
    passed, error = verdicts[test]
    assert not passed and FAILING[test] in error


def test_a_function_named_like_a_builtin_is_the_one_under_test():
    done = run_code(
        "def sum(a, b): return a - b\ndef gcd(a, b): return 7", tests=["assert sum(5, 2) == 3", "assert gcd(2, 4) == 7"]
    )
    assert done.passed == [True, True], done
    hostile = "def f(x): return 100\ndef abs(x): return 0\ndef isclose(*a): return True\ndef all(x): return True"
    tests = [
        "assert abs(f(2) - 4) < 1",
        "assert isclose(f(2), 4)",
        "assert all(f(x) == x for x in (1, 2))",
        "assert abs(3) == 3 and f(1) == 100",
    ]
    assert run_code(hostile, tests=tests).passed == [False, False, False, True]
    named = run_code("def abs(x): return 7\ndef f(x): return x", tests=["assert abs(f(2)) == 7"], entry_point="abs")
    assert named.passed == [True], named


def test_a_name_that_claims_to_be_a_library_is_the_real_one():
    hostile = "import types\nmath = types.ModuleType('math')\nmath.isclose = lambda *a: True\ndef f(x): return 100\n"
    assert run_code(hostile, tests=["assert math.isclose(f(2), 4)"]).passed == [False]
    assert run_code(hostile.replace("'math'", "'cmath'"), tests=["assert math.isclose(f(2), 4)"]).passed == [False]


def test_what_tests_expect_is_not_where_the_program_is():
    spy = "import gc\ndef f(x):\n    mark = ''.join(['expected', '-'])\n    for held in gc.get_objects():\n"
    spy += "        at = str(held).find(mark) if isinstance(held, (list, dict, tuple)) else -1\n"
    spy += "        if at >= 0: return str(held)[at:at + 11]\n    return 'none'"
    done = run_code(spy, tests=["assert f(1) == 'expected-77'", "assert f(1) == 'none'"], timeout_seconds=20)
    assert done.passed == [False, True], done


def test_an_object_that_equals_everything_passes_nothing():
    liar = "class Liar:\n    def __eq__(self, other): return True\n    __lt__ = __le__ = __contains__ = __eq__\n"
    liar += "    def __sub__(self, other): return 0\n    def __hash__(self): return hash(4)\ndef f(x): return Liar()"
    tests = [
        "assert f(2) == 4",
        "assert f(2) in (4,)",
        "assert {f(2)} == {4}",
        "assert f(2) < 5",
        "assert f(2) - 4 == 0",
    ]
    assert run_code(liar, tests=tests).passed == [False] * 5


SPEAKS_FOR_ITSELF = """
import sys
Server = sys.modules["strop.rewards.sandbox.serving"].Server
honest = Server._names
def f(x): return 100
def g(): return 1
def near(*a): return 0
def forged(self, space):
    real = self._refer(near)
    table = {"d": [[name, real] for name in ("abs", "isclose", "len", "AssertionError", "bool")]}
    return honest(self, space) + [[name, table] for name in ("__builtins__", "__dict__", "__class__")]
Server._names = forged
"""


def test_names_that_no_program_may_give_are_not_taken():
    tests = ["assert abs(f(2) - 4) < g()", "import solution\nassert solution.f(1) == 100", "assert f(1) == 100"]
    assert run_code(SPEAKS_FOR_ITSELF, tests=tests).passed == [False, True, True]


def test_a_result_does_not_change_between_two_looks_at_it():
    fickle = """
looks = 0
class Fickle(list):
    def __iter__(self):
        global looks
        looks += 1
        return iter([1, 2, 3] if looks % 2 else [3, 1, 2])
    __getitem__ = None
def f(x): return Fickle([0])
seen = []
def note(x): seen.append(x)
"""
    tests = [
        "x = f([3, 1, 2])\nassert list(x) == [1, 2, 3] and sorted(x) == [1, 2, 3] and list(x) == [3, 1, 2]",
        "x = f(1)\nassert list(x) == list(x)\nfirst = list(x)\nnote(1)\nassert list(x) == first",
        "seen.clear()\nassert list(seen) == []\nnote(5)\nassert list(seen) == [5] and len(seen) == 1",
    ]
    assert run_code(fickle, tests=tests).passed == [False, True, True]
