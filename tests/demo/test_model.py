import torch

from strop.demo.model import build_model, build_tokenizer
from strop.demo.sampling import text_of
from strop.demo.words import held_out_words, train_words


def test_tokenizer_is_one_id_per_character_and_exact_both_ways() -> None:
    tokenizer = build_tokenizer()
    assert len(tokenizer) == 128
    text = " stone backward: enots\n\tÅ~ß…"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text), "no special tokens are added"
    assert tokenizer.decode(ids).replace("<unk>", "Å") == text
    assert tokenizer.unk_token_id not in tokenizer(" ".join([*held_out_words(), *train_words()]))["input_ids"]
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id}) == 4


def test_tokenizer_survives_saving(tmp_path) -> None:
    from transformers import AutoTokenizer

    build_tokenizer().save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(" enots")["input_ids"] == build_tokenizer()(" enots")["input_ids"]
    assert again.eos_token == "</s>"


def test_text_of_drops_one_end_token_and_hides_nothing_else() -> None:
    tokenizer = build_tokenizer()
    ids = tokenizer(" enots")["input_ids"]
    assert text_of(tokenizer, [*ids, tokenizer.eos_token_id]) == text_of(tokenizer, ids) == " enots"
    assert text_of(tokenizer, [*ids, tokenizer.pad_token_id]) == " enots<pad>"


def test_model_is_the_seeds_and_leaves_the_generator_alone() -> None:
    tokenizer = build_tokenizer()
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first = build_model(tokenizer, seed=0)
    assert torch.rand(1) == expected
    assert sum(p.numel() for p in first.parameters()) == 771_200
    weight = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(first.state_dict()[weight], build_model(tokenizer, seed=0).state_dict()[weight])
    assert not torch.equal(first.state_dict()[weight], build_model(tokenizer, seed=1).state_dict()[weight])
