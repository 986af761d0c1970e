from strop.demo.words import HELD_OUT, held_out_words, train_words


def test_words_are_what_the_task_needs() -> None:
    words = [*held_out_words(), *train_words()]
    assert len(words) == len(set(words)) == 4473
    assert all(3 <= len(w) <= 6 and w.isascii() and w.isalpha() and w.islower() for w in words)
    assert not [w for w in words if w == w[::-1]], "a palindrome is spelled backward by copying it"


def test_split_is_fixed_and_disjoint() -> None:
    held_out, train = held_out_words(), train_words()
    assert len(held_out) == HELD_OUT and len(train) == 4473 - HELD_OUT
    assert not set(held_out) & set(train)
    assert held_out_words(3) == held_out[:3] == ["gala", "globe", "sale"]
