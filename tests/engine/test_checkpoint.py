"""The order in which a checkpoint reaches the disk: contents, then the manifest, then the name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.support.crash import tiny_run


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="asks /proc which file is flushed")
def test_everything_is_on_disk_before_the_manifest_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = tiny_run(str(tmp_path), epochs=1, save_strategy="no")
    trainer.train()
    events: list[tuple[str, Path]] = []
    flush, rename = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        events.append(("flushed", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))
        flush(descriptor)

    def replace(source: Path, target: Path) -> None:
        events.append(("renamed", Path(source)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    trainer._save_checkpoint(trainer.model, None)
    (saved,) = tmp_path.glob("checkpoint-*")
    names = {path.name for path in saved.rglob("*") if path.is_file()} - {"manifest.json"}
    assert {"model.safetensors", "optimizer.pt", "trainer_state.json", "strop_state.pt"} <= names
    kinds = [(kind, path.name) for kind, path in events]
    written = f".manifest.json.{os.getpid()}.tmp"
    manifest, published = kinds.index(("renamed", written)), kinds.index(("renamed", saved.name))
    assert names | {written} <= {name for kind, name in kinds[:manifest] if kind == "flushed"}
    assert manifest < published and ("flushed", tmp_path) in events[published:]
