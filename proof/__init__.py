"""The proof that the tests hold what strop promises: every promise, its tests, and historical bugs that they catch.

    python -m proof                       the whole proof; writes docs/proof.md
    python -m proof --promise 6           the mutations of one promise
    python -m proof --mutation NAME       one mutation

A mutation puts a bug that some library once had back into a copy of the source; the tests that are named with it must
fail there, and pass without it.

promises.py    the promises, and the tests that stand for each beside those that its bugs name
mutations/     the bugs, as data: what happened, which text is replaced by which, which tests must fail
mutation.py    applying one to a copy, and finding those that no longer fit the source
fresh.py       pytest in a process that has not seen strop yet
run.py         all of them
result.py      what a run found: proved, in part, or open
page.py        the table, and docs/proof.md
"""
