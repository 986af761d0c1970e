"""From rows to token trees: load, check, convert, render, tokenise, cut, cache, pack. CPU only, torch-free.

rows.py, load.py, signatures.py, textfiles.py, arrow.py   whatever the user has -> rows; errors name file, line, cause
padding.py, user_code.py   the None that Arrow adds; rows that a formatting function or a collator makes
kinds.py, detect.py, layouts.py, public_sets.py   which columns hold what; layouts of public sets
columns.py, messages.py, cases.py, convert.py   rows -> checked cases of the kind that a method needs
options.py, encode.py, chat.py, patience.py, stops.py, trees.py, truncate.py   cases -> token trees (rules R1-R14)
checks.py, findings.py, leaks.py, report.py   the account: broken rows, rows left out, lengths, a rendered row
dataset.py, store.py, cache_folder.py, prepare.py   trees on demand, remembered, cached
packing.py, micro_batches.py, partners.py   trees -> packs, micro-batches, KTO's mismatched pairs
"""

from strop.data.convert import explicit_prompt, join_steps, keep_desirable, unpair
from strop.data.dataset import ExampleDataset, ExampleStream
from strop.data.detect import Detection, detect
from strop.data.findings import Finding
from strop.data.kinds import DatasetKind
from strop.data.leaks import note_leaks
from strop.data.load import load_rows
from strop.data.micro_batches import plan_micro_batches, tree_cost
from strop.data.options import TokenizeOptions
from strop.data.packing import PackedDataset, PackedStream, pack
from strop.data.partners import MismatchedDataset, MismatchedStream, mismatched
from strop.data.prepare import check_rows, prepare
from strop.data.report import DataReport
from strop.data.rows import Rows, RowStream
from strop.data.stops import cut_after_stop, ends_in_stop, stop_ids
from strop.data.user_code import collated, formatted

__all__ = [
    "DataReport",
    "DatasetKind",
    "Detection",
    "ExampleDataset",
    "ExampleStream",
    "Finding",
    "MismatchedDataset",
    "MismatchedStream",
    "PackedDataset",
    "PackedStream",
    "RowStream",
    "Rows",
    "TokenizeOptions",
    "check_rows",
    "collated",
    "cut_after_stop",
    "detect",
    "ends_in_stop",
    "explicit_prompt",
    "formatted",
    "join_steps",
    "keep_desirable",
    "load_rows",
    "mismatched",
    "note_leaks",
    "pack",
    "plan_micro_batches",
    "prepare",
    "stop_ids",
    "tree_cost",
    "unpair",
]
