"""Log-probs of the reference model, computed once for every row and remembered by content."""

from __future__ import annotations

import hashlib
import logging
import zlib
from array import array
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from strop.device import Fetched, sent
from strop.disk import written_beside
from strop.engine.rows import flatten
from strop.engine.sharding import whole
from strop.model.adapters import idle_adapters
from strop.records import Batch, Example, Scores, StepWork

if TYPE_CHECKING:
    from strop.engine.step_trainer import StepTrainer

MAX_CACHED_TOKENS = 100_000_000
PARTS = "reference_logps"

logger = logging.getLogger(__name__)


def content_keys(example: Example) -> list[str]:
    """For each completion a hash of what the reference's log-probs of it depend on: prompt, ids and mask."""
    keys = []
    for index, completion in enumerate(example.completions):
        digest = hashlib.blake2b(digest_size=16)
        for ids in (example.prompt_ids, completion, example.mask(index)):
            digest.update(len(ids).to_bytes(8, "little"))
            digest.update(array("q", ids).tobytes())
        keys.append(digest.hexdigest())
    return keys


def checksum(key: str, logps: torch.Tensor) -> int:
    return zlib.crc32(logps.contiguous().numpy().tobytes(), zlib.crc32(f"{key} {logps.dtype}".encode()))


class ReferenceScores:
    """`scores = reference_scores(batch)`: the reference's `logps` in the flat order of the batch, without gradient.

    The reference never changes (unless `sync_ref_model` is on), so a row's log-probs are computed once and kept, per
    completion, by the hash of its ids: a part of a tree finds them too. `load` and `save` keep them between runs, under
    the fingerprint of the weights.
    """

    def __init__(
        self,
        reference: Any,
        score: Callable[[Any, Batch], Scores],
        settings: Callable[[], Mapping[str, Any]],
        *,
        remembers: bool,
    ) -> None:
        """
        Args:
            reference: of `strop.model`.
            score: (model, batch) -> what is wanted of the reference.
            settings: of scoring, on which the log-probs depend beside the weights.
            remembers: rows come again, so that their log-probs are worth keeping.
        """
        self.reference, self.score, self.settings, self.remembers = reference, score, settings, remembers
        self._known: dict[str, torch.Tensor] = {}
        self._arriving: list[tuple[list[str], list[int], Fetched]] = []  # batches on their way to the host
        self._coming: set[str] = set()  # the keys of these
        self._tokens = 0
        self._unsaved: list[str] = []
        self._fingerprint: str | None = None

    def __call__(self, batch: Batch, *, again: bool = True) -> Scores:
        """The scores of a batch; `again`: its rows will be asked for once more, so they are worth remembering."""
        self._settle(wait=False)
        keys = [key for example in batch.examples for key in content_keys(example)]
        if self._has(keys):
            self._settle(wait=any(key not in self._known for key in keys))
            logps = sent(torch.cat([self._known[key] for key in keys]), batch.targets.device)
            return Scores(batch.segment, batch.num_completions, logps=logps)
        scores = self.compute(batch)
        room = self._tokens < MAX_CACHED_TOKENS and not batch.examples[0].score_prompt
        if again and self.remembers and room:
            self.remember(keys, batch, scores)
        return scores

    def remember(self, keys: list[str], batch: Batch, scores: Scores) -> None:
        """Keep the log-probs of the completions of a batch: they set out for the host together, and nobody waits."""
        self._arriving.append((keys, batch.sizes, Fetched(scores.logps)))
        self._coming.update(keys)
        self._tokens += sum(batch.sizes)
        self._unsaved += keys
        self._settle(wait=False)

    def _has(self, keys: list[str]) -> bool:
        return all(key in self._known or key in self._coming for key in keys)

    def _settle(self, *, wait: bool) -> None:
        """Take in what has come, each completion's log-probs in a place of their own; `wait`: all of it."""
        while self._arriving and (wait or self._arriving[0][2].has_come):
            keys, sizes, logps = self._arriving.pop(0)
            self._known |= {key: part.clone() for key, part in zip(keys, logps.take().split(sizes), strict=True)}
            self._coming.difference_update(keys)

    @torch.no_grad()
    def compute(self, batch: Batch) -> Scores:
        with self.reference.active() as model:
            training = model.training
            model.eval()
            scores = self.score(model, batch)
            model.train(training)
        return scores

    def forget(self) -> None:
        self._known.clear()
        self._arriving, self._coming = [], set()
        self._unsaved, self._tokens, self._fingerprint = [], 0, None

    def precompute(self, dataset: Any, rows_at_once: int, build: Callable[[list[Example]], Batch]) -> int:
        """Score every row of a dataset that is not known yet; returns how many that were."""
        fresh = 0
        for start in range(0, len(dataset), rows_at_once):
            examples = flatten(dataset[i] for i in range(start, min(start + rows_at_once, len(dataset))))
            unknown = [example for example in examples if not self._has(content_keys(example))]
            if unknown:
                batch = build(unknown)
                self.remember([key for example in unknown for key in content_keys(example)], batch, self.compute(batch))
            fresh += len(unknown)
        self._settle(wait=True)
        return fresh

    def let_go(self) -> None:
        """Give back the memory of a reference of its own: all rows are known."""
        self.fingerprint()  # while there are weights to take it of
        if hasattr(self.reference, "model"):
            self.reference.let_go()

    def save(self, path: Path, *, new_only: bool = False) -> None:
        """Write what is remembered (`new_only`: since the last such call) to a safetensors file."""
        self._settle(wait=True)
        values = {key: self._known[key] for key in self._unsaved} if new_only else self._known
        self._unsaved = []
        if not values:
            return
        named = {f"{key}-{checksum(key, tensor):08x}": tensor for key, tensor in values.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_beside(path) as file:
            file.write(save(named, metadata={"reference": self.fingerprint()}))

    def load(self, path: Path) -> bool:
        """Take over remembered log-probs if they were made by the same reference weights; not what is damaged."""
        if not path.is_file():
            return False
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("reference") != self.fingerprint():
                    return False
                records = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            logger.warning("%s is damaged and not used (%s): its rows are scored again", path, error)
            return False
        keyed = {name.rpartition("-")[0]: (name, tensor) for name, tensor in records.items()}
        whole = {key: t for key, (name, t) in keyed.items() if name == f"{key}-{checksum(key, t):08x}"}
        if damaged := len(records) - len(whole):
            logger.warning("%d rows of %s are damaged and not used: they are scored again", damaged, path)
        self._known.update(whole)
        return True

    def fingerprint(self) -> str:
        """Hash of the reference's weights and of the settings that its log-probs depend on; found once."""
        if self._fingerprint is None:
            digest = hashlib.blake2b(str(sorted(self.settings().items())).encode(), digest_size=16)
            with self.reference.active() as model:
                idle = idle_adapters(model)
                for name, tensor in model.state_dict(keep_vars=True).items():  # as weights, that shards are known by
                    if not idle.intersection(name.split(".")):
                        digest.update(name.encode())
                        digest.update(whole(tensor).detach().cpu().contiguous().view(torch.uint8).numpy())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


def parts_until(run_dir: str | Path, step: int, rank: int | None) -> list[Path]:
    """The files of remembered log-probs that a rank (None: every rank) of a run wrote up to a step, oldest first."""
    folder = Path(run_dir) / PARTS
    parts = [(int(path.stem.split("-")[1]), path) for path in folder.glob("step-*.safetensors")]
    names = {part_path(run_dir, at, rank).name for at, _ in parts if rank is not None}
    return [path for at, path in sorted(parts) if at <= step and (rank is None or path.name in names)]


def part_path(run_dir: str | Path, step: int, rank: int = 0) -> Path:
    return Path(run_dir) / PARTS / f"step-{step}{f'-rank-{rank}' if rank else ''}.safetensors"


def scored_again(trainer: StepTrainer, batch: Batch, work: StepWork, training: bool) -> bool:
    """Whether the reference will be asked for the rows of a batch once more: in the next epoch or evaluation, or by the
    pass with gradient, where this is the one for statistics before it. Rows of a stream may come again."""
    if not training or trainer.state.num_train_epochs != 1:
        return True
    return not work.parts and trainer.gradient_rows(batch.examples) is batch.examples
