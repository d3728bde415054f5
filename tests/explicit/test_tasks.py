from typing import Any

import numpy as np
import pytest
import torch
from eimf.explicit.head import ExplicitInterests, assign, contrast, match_interests
from eimf.losses.retrieval_loss import RetrievalLoss
from scipy.optimize import linear_sum_assignment

from eimf.backbones.comirec_sa import ComiRecSA
from eimf.explicit.item_interests import ItemInterests
from eimf.explicit.tasks import schedule


@pytest.mark.parametrize(("count", "size"), [(4, 4), (4, 2), (6, 3), (1, 1)])
def test_optimal_matching_is_the_hungarian_one(count: int, size: int) -> None:
    similarity = torch.randn(20, count, size, generator=torch.Generator().manual_seed(0))
    found = match_interests(similarity, torch.ones(20, size, dtype=torch.bool))
    for row in range(20):
        k, s = linear_sum_assignment(similarity[row].numpy(), maximize=True)
        assert similarity[row][found[row], torch.arange(size)].sum().item() == pytest.approx(
            similarity[row].numpy()[k, s].sum(), abs=1e-5
        )
        assert len(set(found[row].tolist())) == size


def test_absent_interests_take_nobodys_place() -> None:
    similarity = torch.tensor([[[1.0, 9.0], [0.9, 9.0]]])
    present = torch.tensor([[True, False]])
    for method in ("optimal", "greedy"):
        assert match_interests(similarity, present, method)[0, 0] == 0


def test_greedy_matching_takes_the_most_similar_pair_first() -> None:
    similarity = torch.tensor([[[0.9, 0.8], [0.7, 0.1]]])
    everyone = torch.ones(1, 2, dtype=torch.bool)
    assert match_interests(similarity, everyone, "greedy").tolist() == [[0, 1]]
    assert match_interests(similarity, everyone, "optimal").tolist() == [[1, 0]]


def test_more_explicit_than_behavioural_interests() -> None:
    similarity = torch.tensor([[[0.2, 0.9, 0.5]]])
    assert match_interests(similarity, torch.ones(1, 3, dtype=torch.bool)).tolist() == [[0, 0, 0]]
    # The third slot is empty for the second user; the exact assignment is not the greedy one.
    similarity = torch.tensor([[[0.9, 0.8, 0.1], [0.7, 0.1, 0.2]]]).repeat(2, 1, 1)
    present = torch.tensor([[True, True, True], [True, True, False]])
    found = match_interests(similarity, present)
    assert found[0].tolist() == [1, 0, 1]
    assert found[1, :2].tolist() == [1, 0]


def test_contrast_pulls_pairs_and_leaves_a_users_own_interests_alone() -> None:
    words = torch.eye(4)
    right = contrast(words, words, torch.tensor([0, 0, 1, 1]), 0.1)
    wrong = contrast(words[[2, 3, 0, 1]], words, torch.tensor([0, 0, 1, 1]), 0.1)
    assert right < 0.01 < wrong
    swapped = contrast(words[[1, 0, 3, 2]], words, torch.tensor([0, 0, 1, 1]), 0.1)
    assert swapped < wrong  # mixing up one's own interests is a smaller fault
    assert contrast(words[:1], words[:1], torch.tensor([3]), 0.1).item() == 0
    assert contrast(words[:0], words[:0], torch.zeros(0, dtype=torch.long), 0.1).item() == 0


def head(**options) -> ExplicitInterests:
    torch.manual_seed(0)
    return ExplicitInterests(6, 8, torch.randn(5, 6), **options)


def batch(backbone: ComiRecSA) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "words": torch.randn(4, 3, 6, generator=generator),
        "alignable": torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]]).bool(),
        "predictive": torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 0, 0]]).bool(),
        "user": torch.tensor([3, 5, 7, 9]),
        "target": torch.tensor([1, 2, 3, 4]),
        "predict": RetrievalLoss("full_softmax", torch.ones(11, dtype=torch.long)).predict,
    }


@pytest.mark.parametrize("prediction", ["next_item", "interest", "none"])
@pytest.mark.parametrize("alignment", ["infonce", "cosine", "mse", "none"])
@pytest.mark.parametrize("matching", ["optimal", "greedy", "soft"])
def test_every_task_trains_what_it_should(prediction, alignment, matching) -> None:
    torch.manual_seed(0)
    backbone = ComiRecSA(10, 5, embed_dim=8)
    made = head(prediction=prediction, alignment=alignment, matching=matching)
    found = made(backbone, backbone(torch.randint(1, 11, (4, 5))), **batch(backbone))
    on = {"semantic_prediction": prediction != "none", "modality_alignment": alignment != "none"}
    assert set(found) == {name for name, wanted in on.items() if wanted}
    if found:
        sum(found.values(), start=torch.zeros(())).backward()
        assert backbone.item_embedding.weight.grad is not None
        assert backbone.item_embedding.weight.grad.isfinite().all()
        assert all(param.grad is not None and param.grad.isfinite().all() for param in made.parameters())


def test_interests_that_may_not_be_used_change_nothing() -> None:
    torch.manual_seed(0)
    backbone, made = ComiRecSA(10, 5, embed_dim=8), head()
    interests, parts = backbone(torch.randint(1, 11, (4, 5))), batch(backbone)
    before = made(backbone, interests, **parts)
    hidden = ~(parts["alignable"] | parts["predictive"])
    parts["words"] = torch.where(hidden[..., None], torch.randn(4, 3, 6), parts["words"])
    after = made(backbone, interests, **parts)
    for name in before:
        torch.testing.assert_close(before[name], after[name])


def test_nothing_usable_gives_zero_with_gradients() -> None:
    torch.manual_seed(0)
    backbone = ComiRecSA(10, 5, embed_dim=8)
    for prediction in ("next_item", "interest"):
        parts = batch(backbone)
        parts["alignable"], parts["predictive"] = torch.zeros(4, 3).bool(), torch.zeros(4, 3).bool()
        found = head(prediction=prediction)(backbone, backbone(torch.randint(1, 11, (4, 5))), **parts)
        assert all(value.item() == 0 for value in found.values())
        sum(found.values(), start=torch.zeros(())).backward()


def test_next_interest_is_the_cross_entropy_of_what_the_target_serves() -> None:
    torch.manual_seed(0)
    backbone = ComiRecSA(10, 5, embed_dim=8)
    served = ItemInterests(torch.randn(7, 6), torch.randint(0, 7, (11, 2)), torch.rand(11, 2).softmax(dim=1))
    made = head(prediction="next_interest", alignment="none", served=served)
    interests, target = backbone(torch.randint(1, 11, (4, 5))), torch.tensor([1, 2, 3, 4])
    loss = made.predict_next_interest(backbone, interests, target)
    words, expected = made.adapter(served.vectors).detach(), 0.0
    for row, item in enumerate(target.tolist()):
        scores = interests.vectors[row] @ backbone.item_vectors(target)[row]
        told = (words @ interests.vectors[row, scores.argmax()].detach()).log_softmax(dim=0)
        for one, share in zip(served.interest[item], served.share[item], strict=True):
            expected -= float(share * told[one]) / 4
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert backbone.item_embedding.weight.grad is not None
    assert all(param.grad is not None for param in made.parameters())
    assert "vocabulary" not in made.state_dict()  # made again from the labels


def test_the_schedule_ends_with_its_epochs() -> None:
    assert [schedule(epoch, 2, 2, 4) for epoch in range(6)] == [0.5, 1.0, 1.0, 0.5, 0.0, 0.0]


def test_frozen_items_are_left_to_the_recommendation_loss() -> None:
    torch.manual_seed(0)
    backbone = ComiRecSA(10, 5, embed_dim=8)
    made, interests = head(frozen_items=True), backbone(torch.randint(1, 11, (4, 5)))
    found = made(backbone, interests, **batch(backbone))
    found["semantic_prediction"].backward(retain_graph=True)
    assert backbone.item_embedding.weight.grad is None
    assert all(param.grad is not None for param in made.adapter.parameters())
    assert torch.equal(
        found["semantic_prediction"], head()(backbone, interests, **batch(backbone))["semantic_prediction"]
    )
    found["modality_alignment"].backward()
    assert backbone.item_embedding.weight.grad is not None  # by way of the history


def test_assignment_wants_one_behavioural_interest_for_each_explicit_one() -> None:
    shown = torch.tensor([[-1, 0, 0, 1, 1]])
    right = torch.tensor([[[0.1, 0.0, 0.0, 0.5, 0.4], [0.0, 0.5, 0.5, 0.0, 0.0], [0.9, 0.0, 0.0, 0.0, 0.0]]])
    mixed = torch.full((1, 3, 5), 0.2)
    assert assign(right, shown, 2).item() == pytest.approx(0, abs=1e-5)
    assert assign(mixed, shown, 2).item() == pytest.approx(np.log(3), abs=1e-5)
    # One behavioural interest for both is worse than one for each.
    same = torch.zeros(1, 3, 5)
    same[0, 0] = 0.2
    assert assign(same, shown, 2).item() > 1
    assert assign(right, torch.full((1, 5), -1), 2).item() == 0
    assert assign(torch.zeros(1, 3, 5), shown, 2).item() == 0  # padding alone
    # The most wrong position has the largest gradient, not none.
    logits = torch.zeros(1, 2, 2)
    logits[0, 0, 0], logits[0, 1, 1] = 30.0, 20.0
    logits.requires_grad_()
    assign(logits.softmax(dim=1), torch.tensor([[0, 0]]), 1).backward()
    assert logits.grad is not None
    assert logits.grad.abs().amax() == pytest.approx(0.5, abs=1e-3)
    mixed.requires_grad_()
    assign(mixed.softmax(dim=-1), shown, 2).backward()
    assert mixed.grad is not None
    assert mixed.grad.isfinite().all()


def test_assignment_is_off_unless_asked_for() -> None:
    torch.manual_seed(0)
    backbone, made = ComiRecSA(10, 5, embed_dim=8), head()
    interests, parts = backbone(torch.randint(1, 11, (4, 5))), batch(backbone)
    shown = torch.zeros(4, 5, dtype=torch.long)
    assert "interest_assignment" not in made(backbone, interests, **parts)
    found = made(backbone, interests, **parts, shown=shown)
    found["interest_assignment"].backward()
    assert backbone.heads.weight.grad is not None


def test_schedule() -> None:
    assert [schedule(epoch, 4, 0, 10) for epoch in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [schedule(epoch, 0, 2, 10) for epoch in (7, 8, 9, 10)] == [1.0, 1.0, 0.5, 0.0]
    assert np.isclose(schedule(0, 0, 0, 1), 1.0)
