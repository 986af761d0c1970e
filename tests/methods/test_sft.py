"""Ways to hand rows to SFT, and what a user's own metrics are given."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import DataCollatorForLanguageModeling

from strop.data import RowStream
from strop.engine.rows import flatten
from strop.engine.step import scored_tokens
from strop.errors import ConfigError, DataError
from strop.testing.cases import make_trainer, rows_for
from strop.testing.tokenizers import toy_tokenizer


def test_formatting_func_makes_the_text(tmp_path):
    rows = [{"question": "ant", "answer": "bee"}, {"question": "cat", "answer": "dog"}]
    trainer = make_trainer(
        "sft", tmp_path, rows=rows, trainer={"formatting_func": lambda row: f"{row['question']}: {row['answer']}"}
    )
    texts = [trainer.processing_class.decode(e.completions[0], skip_special_tokens=True) for e in trainer.train_dataset]
    assert texts == ["ant: bee", "cat: dog"]


def test_compute_metrics_gets_a_prediction_per_row_in_order(tmp_path):
    given = []

    def compute_metrics(prediction):
        given.append(prediction.predictions)
        return {"least": float(prediction.predictions.min())}

    rows = rows_for("dpo", 5)
    options = {"trainer": {"compute_metrics": compute_metrics}, "per_device_eval_batch_size": 2}
    trainer = make_trainer("dpo", tmp_path, rows=rows, eval_rows=rows, **options)
    metrics = trainer.evaluate()
    assert given[0].shape == (5, 2) and metrics["eval_least"] == given[0].min()
    assert given[0][:, 0].mean() == pytest.approx(metrics["eval_logps/chosen"], abs=1e-5)


ROOM = 6
LONG = [{"text": "the good ant saw the bee " * 3}, {"text": "ant"}, {"prompt": "ant", "completion": "ran " * 9}]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "bfd-requeue", "wrapped"])
def test_packing_cuts_long_rows_or_splits_them(strategy, stream, tmp_path):
    """Whole rows are cut to fit a pack; rows that may be split lose no scored token."""

    def scored(settings, rows):
        given = RowStream(lambda: iter(rows)) if stream else rows
        trainer = make_trainer("sft", tmp_path, rows=given, max_steps=1, **settings)
        examples = flatten(trainer.train_dataset)
        count = sum(scored_tokens(example, 0) for example in examples)
        return count, max(example.num_tokens for example in examples), trainer.reports["train"]

    for rows in (LONG[:2], LONG[2:]):
        whole, _, _ = scored({"max_length": None}, rows)
        kept, longest, report = scored({"max_length": ROOM, "packing": True, "packing_strategy": strategy}, rows)
        assert longest <= ROOM < report.lengths["uncut"]["max"]
        if strategy == "bfd":
            assert kept < whole and report.split == 0
        else:
            assert kept == whole and (report.truncated, report.split, report.left_out) == (0, 1, {})
            assert "1 of" in report.render() and "split, not cut" in report.render()


def test_rows_that_are_not_packed_are_cut(tmp_path):
    rows = {"rows": LONG[:2], "eval_rows": LONG[:2]}
    settings = {"max_length": ROOM, "packing": True, "packing_strategy": "bfd_split", "eval_packing": False}
    trainer = make_trainer("sft", tmp_path, **rows, **settings)
    assert max(example.num_tokens for example in trainer.eval_dataset) == ROOM
    assert (trainer.reports["eval"].truncated, trainer.reports["eval"].split) == (1, 0)


def endless(read):
    for number in itertools.count():
        read.append(number)
        yield {"text": f"the ant {number % 7}", "ids": [5, 6, 7, 8]}


def collate(rows):
    return {"input_ids": torch.tensor([row["ids"] for row in rows]), "labels": torch.tensor([[-100, 6, -100, 8]])}


@pytest.mark.parametrize(
    "own", [{"formatting_func": lambda row: row["text"]}, {"data_collator": collate}], ids=["formatting", "collator"]
)
def test_a_stream_is_not_read_to_its_end_by_own_functions(tmp_path, own):
    read = []
    trainer = make_trainer("sft", tmp_path, rows=RowStream(lambda: endless(read)), trainer=own, max_steps=1)
    trainer.train()
    assert trainer.state.global_step == 1 and len(read) < 2000


def test_what_a_collator_returns_is_cut_packed_and_masked(tmp_path):
    rows = [{"ids": [5, 6, 7, 8]}] * 4
    trainer = make_trainer("sft", tmp_path, rows=rows, trainer={"data_collator": collate}, max_length=3)
    assert [(e.prompt_ids, e.completions, e.loss_mask) for e in trainer.train_dataset] == [([5], [[6]], None)] * 4
    assert trainer.reports["train"].to_dict()["rows_read"] == 4
    packed = make_trainer("sft", tmp_path, rows=rows, trainer={"data_collator": collate}, packing=True, max_length=8)
    assert [len(pack) for pack in packed.train_dataset] == [2, 2]


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ({"labels": [[5, 6, 7, 9]]}, "'labels': differs from input_ids at position 3"),
        ({"labels": [[5, 6, 7, 8]], "position_ids": [[0, 1, 0, 1]]}, "do not count from 0"),
        ({"labels": [[5, 6, 7, 8]], "loss_weights": [[1, 1, 0.5, 1]]}, r"\['loss_weights'\] would not be used"),
        ({"label": [[5, 6, 7, 8]]}, "without \\['labels'\\]. Did you mean 'label'"),
        ({"labels": [[5, 6, 7, 8]] * 2}, "not one list of one row's tokens"),
    ],
)
def test_what_a_collator_returns_and_is_not_honoured_is_refused(tmp_path, returned, said):
    with pytest.raises(DataError, match=said):
        own = {"data_collator": lambda rows: {"input_ids": [[5, 6, 7, 8]], **returned}}
        make_trainer("sft", tmp_path, rows=[{"ids": 1}], trainer=own)


def test_a_collator_for_tokenised_rows_names_the_raw_row(tmp_path):
    collator = DataCollatorForLanguageModeling(toy_tokenizer("plain"), mlm=False)
    with pytest.raises(DataError, match=r"data_collator raised ValueError for row 0.*here with \['text'\]"):
        make_trainer("sft", tmp_path, rows=[{"text": "the ant"}], trainer={"data_collator": collator})


def test_a_collator_and_another_mask_contradict(tmp_path):
    with pytest.raises(ConfigError, match="assistant_only_loss: the labels of data_collator"):
        make_trainer("sft", tmp_path, rows=[{"ids": 1}], trainer={"data_collator": collate}, assistant_only_loss=True)
