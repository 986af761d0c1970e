"""The cache: a second run asks the tokenizer nothing; what changes ids leads to another folder; damage is survived."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.support.tokenizers import toy_tokenizer

from strop.data import TokenizeOptions, cache_folder, prepare, store
from strop.data.store import TreeStore, pack_tree, unpack_tree
from strop.data.truncate import Tokenized
from strop.disk import written_beside
from strop.errors import SetupError

TREES = [
    Tokenized([1, 2], [[3], [4, 5]]),
    Tokenized([], [[70_000, 2]], [[0, 1]], [0.5], ("truncated", "cut"), uncut=9),
    Tokenized([5], []),
    Tokenized.without("too_long", "9 tokens", 9),
]


def rows(count: int = 6) -> list[dict[str, Any]]:
    return [{"prompt": f"the ant {i}", "chosen": " good" * (i + 1), "rejected": " bad", "id": i} for i in range(count)]


@pytest.mark.parametrize("tree", TREES)
def test_packing_a_tree(tree: Tokenized) -> None:
    assert unpack_tree(pack_tree(tree)) == tree


def test_store_on_disk(tmp_path: Path) -> None:
    first = TreeStore(10, tmp_path)
    for position, tree in enumerate(TREES):
        first.put(position, tree)
    assert [first.get(p) for p in range(5)] == [*TREES, None] and not list(tmp_path.glob("*.arrow"))
    first.flush()
    first.put(7, TREES[0])
    first.flush()
    assert len(list(tmp_path.glob("*.arrow"))) == 2 and not list(tmp_path.glob(".*.tmp"))
    for found in (first, TreeStore(10, tmp_path)):
        assert [found.get(p) for p in range(5)] == [*TREES, None] and found.get(7) == TREES[0]
        assert found.has(7) and not found.has(8)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(store, "MEMORY_BYTES", 300)
    forgetful = TreeStore(10)
    for position in range(10):
        forgetful.put(position, TREES[0])
    assert forgetful.pending_bytes <= 300 and forgetful.get(9) == TREES[0] and forgetful.get(0) is None
    writing = TreeStore(10, tmp_path)
    for position in range(10):
        writing.put(position, TREES[0])
    assert writing.pending_bytes <= 300 and all(writing.get(p) == TREES[0] for p in range(10))


@pytest.mark.parametrize("eager_rows", [0, 100])
def test_a_second_run_makes_no_tokenizer_call(tmp_path: Path, calls: Counter[str], eager_rows: int) -> None:
    chat = [
        {"messages": [{"role": "user", "content": str(i)}, {"role": "assistant", "content": f"yes {i}"}]}
        for i in range(5)
    ]
    for data_rows, kind, variant in ((rows(), "preference", "auto_bos"), (chat, "language_modeling", "chatml")):

        def run() -> tuple[Any, Any]:
            data = prepare(
                data_rows,  # noqa: B023
                kind,  # noqa: B023
                toy_tokenizer(variant),  # noqa: B023
                TokenizeOptions(assistant_only_loss=kind == "language_modeling"),  # noqa: B023
                cache_dir=tmp_path,
                eager_rows=eager_rows,
            )
            trees = list(data)
            data.store.flush()
            return trees, data.report.to_dict()

        calls.clear()
        first = run()
        assert sum(calls.values()) > 0
        calls.clear()
        assert run() == first
        assert set(calls) <= {"decode"}, "all but the row that the report shows is read"


def test_a_part_is_kept_when_a_run_is_cut_short(tmp_path: Path, calls: Counter[str]) -> None:
    data = prepare(rows(), "preference", toy_tokenizer(), cache_dir=tmp_path, eager_rows=0)
    kept = data[3]
    data.store.flush()
    again = prepare(rows(), "preference", toy_tokenizer(), cache_dir=tmp_path, eager_rows=0)
    calls.clear()
    assert again[3] == kept and not calls
    assert again[4].row == 4 and calls


def folders(tmp_path: Path, data_rows: Any, tokenizer: Any = None, **options: Any) -> set[str]:
    kind = options.pop("kind", "preference")
    prepare(data_rows, kind, tokenizer or toy_tokenizer(), TokenizeOptions(**options), cache_dir=tmp_path)
    return {path.name for path in tmp_path.iterdir()}


def test_what_changes_ids_leads_to_another_folder(tmp_path: Path) -> None:
    edited = rows()
    edited[3]["rejected"] = " worse"
    chat = [{"prompt": [{"role": "user", "content": "q"}], "chosen": "a", "rejected": "b"}]
    sizes = [
        len(folders(tmp_path, rows())),
        len(folders(tmp_path, edited)),
        len(folders(tmp_path, rows()[::-1])),
        len(folders(tmp_path, rows(), max_length=7)),
        len(folders(tmp_path, rows(), append_eos=False)),
        len(folders(tmp_path, rows(), toy_tokenizer("auto_bos"))),
        len(folders(tmp_path, rows(), toy_tokenizer(eos_token="<|im_end|>"))),
        len(folders(tmp_path, rows(), kind="unpaired_preference")),
        len(folders(tmp_path, chat, toy_tokenizer("chatml"))),
        len(folders(tmp_path, chat, toy_tokenizer("chatml_generation"))),
        len(folders(tmp_path, chat, toy_tokenizer("chatml"), chat_template="{{ messages }}")),
        len(folders(tmp_path, chat, toy_tokenizer("chatml"), chat_template_kwargs={"a": 1})),
    ]
    assert sizes == list(range(1, len(sizes) + 1))


def test_what_changes_no_ids_does_not(tmp_path: Path) -> None:
    tokenizer = toy_tokenizer()
    names = folders(tmp_path, rows(), tokenizer)
    tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=2)  # leaves its settings in the tokenizer
    assert folders(tmp_path, rows(), tokenizer) == names
    assert folders(tmp_path, rows(), score_prompt=True, skip_bad_rows=True) == names
    assert folders(tmp_path, [{**row, "id": 99} for row in rows()]) == names


@pytest.mark.parametrize("damage", [b"", b"x", None])
def test_a_damaged_file_is_not_used(tmp_path: Path, damage: bytes | None) -> None:
    first = list(prepare(rows(), "preference", toy_tokenizer(), cache_dir=tmp_path))
    (path,) = tmp_path.glob("*/*.arrow")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage is None else damage)
    data = prepare(rows(), "preference", toy_tokenizer(), cache_dir=tmp_path)
    assert list(data) == first
    assert any("is damaged and was not used" in finding.message for finding in data.report.findings)


def test_a_flipped_bit_gives_the_same_trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 37th bit of the file, wherever it lies: the trees are never others, and what was lost is said."""
    monkeypatch.setattr(store.logger, "disabled", True)
    first = TreeStore(3, tmp_path)
    for position, tree in enumerate(TREES[:3]):
        first.put(position, tree)
    first.flush()
    (path,) = tmp_path.glob("*.arrow")
    content = path.read_bytes()
    lost = 0
    for bit in range(0, 8 * len(content), 37):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.unlink()  # the old one is still mapped
        path.write_bytes(damaged)
        said: list[str] = []
        found = TreeStore(3, tmp_path, said.append)
        trees = [found.get(position) for position in range(3)]
        assert all(tree in (None, TREES[position]) for position, tree in enumerate(trees)), bit
        assert None not in trees or any("damaged and was not used" in trouble for trouble in said), bit
        lost += None in trees
    assert lost > 20


@pytest.mark.parametrize("eager_rows", [0, 100])
def test_a_damaged_record_is_tokenised_again(tmp_path: Path, eager_rows: int) -> None:
    def run() -> tuple[list[Any], list[str]]:
        data = prepare(rows(), "preference", toy_tokenizer(), cache_dir=tmp_path, eager_rows=eager_rows)
        trees = list(data)
        data.store.flush()
        return trees, [finding.message for finding in data.report.findings if "damaged" in finding.message]

    trees, _ = run()
    path = max(tmp_path.glob("*/*.arrow"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[content.index(b"[[") + 60] ^= 1
    path.write_bytes(content)
    again, said = run()
    assert again == trees and len(said) == 1 and "is damaged and was not used" in said[0]
    assert run() == (trees, [])  # what was built anew counts from now on


def test_a_record_of_another_row_or_set_is_not_used(tmp_path: Path) -> None:
    said: list[str] = []
    one, other = TreeStore(2, tmp_path / "one"), TreeStore(2, tmp_path / "other", said.append)
    one.put(0, TREES[0])
    one.flush()
    (path,) = (tmp_path / "one").glob("*.arrow")
    (tmp_path / "other" / path.name).write_bytes(path.read_bytes())
    other.load()
    assert one.get(0) == TREES[0] and other.get(0) is None and said


def test_a_name_is_not_a_path(tmp_path: Path) -> None:
    for name in ("eval_x/../../y", "/root", "a\0b", "\udc80", "\n" * 999, ".."):
        data = prepare(rows(), "preference", toy_tokenizer(), cache_dir=tmp_path / "deep" / "cache", name=name)
        assert data.store.folder.parent == tmp_path / "deep" / "cache"
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["cache"]


def test_a_full_disk_costs_the_cache_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_folder.os, "replace", full)
    data = prepare(rows(), "preference", toy_tokenizer(), cache_dir=tmp_path)
    assert len(list(data)) == 6 and not list(tmp_path.glob("*/*.arrow")) and not list(tmp_path.glob("*/.*.tmp"))
    assert any("No space left on device" in finding.message for finding in data.report.findings)


def test_a_cache_dir_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match=r"cache_dir: .* cannot be made"):
        prepare(rows(), "preference", toy_tokenizer(), cache_dir=tmp_path / "file")


def test_files_are_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), written_beside(tmp_path / "a") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_forked_worker_does_not_write_what_its_parent_will(tmp_path: Path) -> None:
    parent = TreeStore(3, tmp_path)
    parent.put(0, TREES[0])
    child = os.fork()
    if child == 0:
        parent.flush()
        os._exit(len(list(tmp_path.glob("*.arrow"))))
    assert os.waitpid(child, 0)[1] == 0
    parent.flush()
    assert len(list(tmp_path.glob("*.arrow"))) == 1


def test_two_processes_tokenise_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both want the same set at the same moment: one tokenises it, the other waits and reads."""
    tokenizer = toy_tokenizer()
    original = type(tokenizer).__call__

    def slow(self: Any, texts: Any, **settings: Any) -> Any:
        if isinstance(texts, list):
            (tmp_path / f"call-{os.getpid()}").touch()
            time.sleep(0.5)
        return original(self, texts, **settings)

    monkeypatch.setattr(type(tokenizer), "__call__", slow)
    wanted = [example.num_tokens for example in prepare(rows(), "preference", toy_tokenizer())]
    (tmp_path / f"call-{os.getpid()}").unlink()
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()

    def work() -> None:
        barrier.wait()
        data = prepare(rows(), "preference", tokenizer, cache_dir=tmp_path / "cache")
        results.put(list(data.report.sizes["tree"]))

    processes = [context.Process(target=work) for _ in range(2)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [wanted, wanted]
    for process in processes:
        process.join()
    assert len(list(tmp_path.glob("call-*"))) == 1


@pytest.mark.parametrize("stopped", [True, False])
def test_a_lock_that_another_process_holds_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stopped: bool
) -> None:
    """A process that stands still is not waited for, one that works is; both are named after a moment."""
    monkeypatch.setattr(cache_folder, "PATIENCE_S", 0.1)
    folder = tmp_path / "set"
    context = multiprocessing.get_context("fork")
    warning = cache_folder.logger.warning
    held, go_on = context.Event(), context.Event()

    def hold() -> None:
        with TreeStore(3, folder).alone():
            held.set()
            if stopped:
                os.kill(os.getpid(), signal.SIGSTOP)
            assert go_on.wait(60)

    holder = context.Process(target=hold)
    holder.start()
    assert held.wait(60)
    said: list[str] = []
    waiting = TreeStore(3, folder, said.append)
    monkeypatch.setattr(cache_folder.logger, "warning", lambda *said: (warning(*said), go_on.set()))  # it is named
    with waiting.alone():
        assert stopped or go_on.is_set(), "one that works is waited for, and named meanwhile"
        waiting.put(0, TREES[0])
        waiting.flush()
    go_on.set()
    os.kill(holder.pid or 0, signal.SIGCONT)
    holder.join()
    assert f"process {holder.pid} on {socket.gethostname()}" in caplog.text + "".join(said)
    assert any("which is stopped, and was not waited for" in trouble for trouble in said) is stopped
    assert TreeStore(3, folder).get(0) == TREES[0]
