from eimf.explicit.naming import behind_words
from eimf.labels.label import Label
from eimf.labels.prompts import Interest


def test_words_go_to_the_interest_that_attends_to_their_items() -> None:
    words = (Interest("hair", (1, 2)), Interest("nails", (3,)), Interest("soap", (4,)))
    label = Label("u", words, ("a", "b", "c", "d"), "model", "1")
    assert behind_words(label, ["x", "a", "b", "c"], [0, 2, 2, 1]) == [2, 1, None]
    assert behind_words(label, ["a", "b", "c"], [1, 0, None]) == [0, None, None]  # a tie goes to the lower number
