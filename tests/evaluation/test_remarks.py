"""Sentences about interests."""

from eimf.evaluation.remarks import describe_interests


def test_nothing_is_said_of_distinct_interests() -> None:
    good = {"interest_cosine": 0.3, "interest_overlap@20": 0.1, "hit_share_interest_0@50": 0.6, "agreement": 0.3}
    assert describe_interests(good) == ()
    assert describe_interests({"recall@20": 0.1}) == ()


def test_collapsed_interests_are_named() -> None:
    (sentence,) = describe_interests({"interest_cosine": 0.97, "interest_overlap@20": 0.85})
    assert "mean cosine 0.97" in sentence
    assert "share 85% of their items" in sentence
    assert len(describe_interests({"interest_cosine": 0.2, "interest_overlap@20": 0.9})) == 1


def test_one_interest_for_all_and_agreement_at_chance() -> None:
    found = describe_interests({"hit_share_interest_0@50": 0.9, "hit_share_interest_1@50": 0.1, "agreement": 0.01})
    assert [sentence.split(" ")[0] for sentence in found] == ["One", "The"]
