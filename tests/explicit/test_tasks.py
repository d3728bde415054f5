from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from eimf.backbones.comirec_sa import ComiRecSA
from eimf.core.errors import ConfigError
from eimf.data.batch import LabelledSamples
from eimf.explicit.item_interests import ItemInterests
from eimf.explicit.matching import match_interests, partners
from eimf.explicit.supervision import Supervision
from eimf.explicit.tasks import ExplicitTasks, Step, Task
from eimf.explicit.tasks.interest_assignment import assign
from eimf.explicit.tasks.modality_alignment import contrast
from eimf.losses import FullSoftmax


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


def test_partners_are_the_most_similar_interests_or_their_mean() -> None:
    behaviour = torch.tensor([[[0.0, 2.0], [3.0, 0.0]]])
    words, present = torch.tensor([[[1.0, 0.0]]]), torch.ones(1, 1, dtype=torch.bool)
    for method in ("optimal", "greedy"):
        assert partners(behaviour, words, present, method).tolist() == [[[3.0, 0.0]]]
    weights = torch.tensor([0.0, 1.0 / 0.5]).softmax(dim=0)
    expected = (weights[:, None] * behaviour[0]).sum(dim=0)
    torch.testing.assert_close(partners(behaviour, words, present, "soft", 0.5)[0, 0], expected)


def test_contrast_pulls_pairs_and_leaves_a_users_own_interests_alone() -> None:
    words = torch.eye(4)
    right = contrast(words, words, torch.tensor([0, 0, 1, 1]), 0.1)
    wrong = contrast(words[[2, 3, 0, 1]], words, torch.tensor([0, 0, 1, 1]), 0.1)
    assert right < 0.01 < wrong
    swapped = contrast(words[[1, 0, 3, 2]], words, torch.tensor([0, 0, 1, 1]), 0.1)
    assert swapped < wrong  # mixing up one's own interests is a smaller fault
    assert contrast(words[:1], words[:1], torch.tensor([3]), 0.1).item() == 0
    assert contrast(words[:0], words[:0], torch.zeros(0, dtype=torch.long), 0.1).item() == 0


def supervision() -> Supervision:
    """Three explicit interests of each of four users."""
    vectors = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(1))
    none = torch.full((4, 3, 2), -1)
    return Supervision(
        vectors=vectors,
        present=torch.ones(4, 3, dtype=torch.bool),
        items=none,
        groups=none,
        made_from=torch.zeros_like(none),
        seen_end=torch.zeros(4, dtype=torch.long),
        span_row=torch.arange(4),
        user_idx=torch.tensor([3, 5, 7, 9]),
        weight=torch.ones(4),
    )


def make(**options: Any) -> ExplicitTasks:
    """The auxiliary tasks of options, seeded."""
    torch.manual_seed(0)
    return ExplicitTasks(supervision(), 8, clusters=5, **options)


def samples() -> LabelledSamples:
    """A sample of each of the four users."""
    return LabelledSamples(
        history=torch.randint(1, 11, (4, 5)),
        target=torch.tensor([1, 2, 3, 4]),
        user_idx=torch.tensor([3, 5, 7, 9]),
        label_embeddings=supervision().vectors,
        alignable=torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]]).bool(),
        predictive=torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 0, 0]]).bool(),
        shown=torch.zeros(4, 5, dtype=torch.long),
    )


def losses(
    made: ExplicitTasks, backbone: ComiRecSA, seen: LabelledSamples, weights: dict[str, float] | None = None
) -> dict[str, torch.Tensor]:
    """Losses of all tasks at weight 1, with the labelled samples as the batch too."""
    interests = backbone(seen.history)
    weights = weights or dict.fromkeys(made.tasks, 1.0)
    return made(backbone, interests, seen.history, seen.target, interests, seen, weights, FullSoftmax())


@pytest.mark.parametrize("prediction", ["next_item", "interest", "none"])
@pytest.mark.parametrize("alignment", ["infonce", "cosine", "mse", "none"])
@pytest.mark.parametrize("matching", ["optimal", "greedy", "soft"])
def test_every_task_trains_what_it_should(prediction: str, alignment: str, matching: str) -> None:
    torch.manual_seed(0)
    backbone = ComiRecSA(10, 5, embed_dim=8)
    made = make(prediction=prediction, alignment=alignment, matching=matching)
    found = losses(made, backbone, samples())
    on = {"semantic_prediction": prediction != "none", "modality_alignment": alignment != "none"}
    assert set(found) == {name for name, wanted in on.items() if wanted}
    if found:
        sum(found.values(), start=torch.zeros(())).backward()
        assert backbone.item_embedding.weight.grad is not None
        assert backbone.item_embedding.weight.grad.isfinite().all()
        assert all(param.grad is not None and param.grad.isfinite().all() for param in made.parameters())


def test_interests_that_may_not_be_used_change_nothing() -> None:
    torch.manual_seed(0)
    backbone, made, seen = ComiRecSA(10, 5, embed_dim=8), make(), samples()
    before = losses(made, backbone, seen)
    hidden = ~(seen.alignable | seen.predictive)
    words = torch.where(hidden[..., None], torch.randn(4, 3, 6), seen.label_embeddings)
    assert not torch.equal(words, seen.label_embeddings)
    after = losses(made, backbone, seen._replace(label_embeddings=words))
    assert len(before) == 2
    for name in before:
        torch.testing.assert_close(before[name], after[name])


def test_nothing_usable_gives_zero_with_gradients() -> None:
    torch.manual_seed(0)
    backbone = ComiRecSA(10, 5, embed_dim=8)
    none = torch.zeros(4, 3).bool()
    for prediction in ("next_item", "interest"):
        found = losses(make(prediction=prediction), backbone, samples()._replace(alignable=none, predictive=none))
        assert len(found) == 2
        assert all(value.item() == 0 for value in found.values())
        sum(found.values(), start=torch.zeros(())).backward()


def linked() -> ItemInterests:
    """Ten items, each linked to two of seven explicit interests."""
    return ItemInterests(torch.randn(7, 6), torch.randint(0, 7, (11, 2)), torch.rand(11, 2).softmax(dim=1))


def test_next_interest_is_the_cross_entropy_of_what_the_target_is_linked_to() -> None:
    torch.manual_seed(0)
    backbone, links = ComiRecSA(10, 5, embed_dim=8), linked()
    made = make(prediction="next_interest", alignment="none", links=links)
    history, target = torch.randint(1, 11, (4, 5)), torch.tensor([1, 2, 3, 4])
    interests = backbone(history)
    found = made(backbone, interests, history, target, None, None, {"semantic_prediction": 1.0}, FullSoftmax())
    loss = found["semantic_prediction"]
    words, expected = made.adapter(links.vectors).detach(), 0.0
    for row, item in enumerate(target.tolist()):
        scores = interests.vectors[row] @ backbone.item_vectors(target)[row]
        log_share = (words @ interests.vectors[row, scores.argmax()].detach()).log_softmax(dim=0)
        for one, share in zip(links.interest[item], links.share[item], strict=True):
            expected -= float(share * log_share[one]) / 4
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert backbone.item_embedding.weight.grad is not None
    assert all(param.grad is not None for param in made.parameters())
    assert not any("vocabulary" in name for name in made.state_dict())  # made again from the labels
    with pytest.raises(ConfigError, match="next_interest.* needs links"):
        make(prediction="next_interest")


def test_tasks_of_labelled_samples_are_left_out_without_samples() -> None:
    torch.manual_seed(0)
    backbone = ComiRecSA(10, 5, embed_dim=8)
    made = make(prediction="next_interest", links=linked())
    history, target = torch.randint(1, 11, (4, 5)), torch.tensor([1, 2, 3, 4])
    interests = backbone(history)
    found = made(backbone, interests, history, target, None, None, made.weights_at(0, 0), FullSoftmax())
    assert set(made.weights_at(0, 0)) == {"semantic_prediction", "modality_alignment"}
    assert set(found) == {"semantic_prediction"}


def test_losses_are_weighted() -> None:
    torch.manual_seed(0)
    backbone, made, seen = ComiRecSA(10, 5, embed_dim=8), make(), samples()
    plain = losses(made, backbone, seen)
    found = losses(made, backbone, seen, {"semantic_prediction": 0.5, "modality_alignment": 3.0})
    torch.testing.assert_close(found["semantic_prediction"], 0.5 * plain["semantic_prediction"])
    torch.testing.assert_close(found["modality_alignment"], 3.0 * plain["modality_alignment"])
    assert set(losses(made, backbone, seen, {"modality_alignment": 1.0})) == {"modality_alignment"}


def test_frozen_items_are_left_to_the_recommendation_loss() -> None:
    torch.manual_seed(0)
    backbone, made, seen = ComiRecSA(10, 5, embed_dim=8), make(frozen_items=True), samples()
    found = losses(made, backbone, seen)
    found["semantic_prediction"].backward(retain_graph=True)
    assert backbone.item_embedding.weight.grad is None
    assert all(param.grad is not None for param in made.adapter.parameters())
    assert torch.equal(found["semantic_prediction"], losses(make(), backbone, seen)["semantic_prediction"])
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
    backbone, seen = ComiRecSA(10, 5, embed_dim=8), samples()
    assert "interest_assignment" not in losses(make(), backbone, seen)
    found = losses(make(assignment_weight=0.1), backbone, seen)
    found["interest_assignment"].backward()
    assert backbone.heads.weight.grad is not None


def test_weights_rise_over_the_warm_up() -> None:
    made = make(prediction_weight=1.0, alignment_weight=2.0, warmup_epochs=4, every=1)
    found = [made.weights_at(epoch, 0) for epoch in range(5)]
    assert [one["semantic_prediction"] for one in found] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [one["modality_alignment"] for one in found] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert make(prediction_weight=1.0).weights_at(0, 0)["semantic_prediction"] == 1.0


def test_tasks_end_with_their_epochs() -> None:
    made = make(prediction_weight=1.0, epochs=4, warmup_epochs=2)
    found = [made.weights_at(epoch, 0).get("semantic_prediction", 0.0) for epoch in range(6)]
    assert found == [0.5, 1.0, 1.0, 1.0, 0.0, 0.0]
    assert made.weights_at(4, 0) == {}
    assert make().weights_at(1000, 0) != {}  # 0 is all epochs


def test_tasks_are_on_at_every_so_many_steps() -> None:
    made = make(every=3)
    assert [bool(made.weights_at(0, step)) for step in range(7)] == [True, False, False, True, False, False, True]
    assert [bool(made.weights_at(1, step)) for step in range(4)] == [True, False, False, True]


def test_a_weight_of_zero_leaves_a_task_out() -> None:
    assert set(make(prediction_weight=0.0).weights_at(0, 0)) == {"modality_alignment"}
    assert set(make(assignment_weight=0.2).weights_at(0, 0)) == {
        "semantic_prediction",
        "modality_alignment",
        "interest_assignment",
    }


class LengthOfWords(Task):
    """A task of another package."""

    name = "length_of_words"

    def __init__(self, text_dim: int, embed_dim: int) -> None:
        super().__init__(text_dim, embed_dim)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, step: Step) -> torch.Tensor:
        assert step.adapted is not None
        return self.scale * step.adapted.square().mean()


def test_a_task_of_another_package_joins_by_its_import_path() -> None:
    torch.manual_seed(0)
    backbone, seen = ComiRecSA(10, 5, embed_dim=8), samples()
    path = f"{__name__}:LengthOfWords"
    made = make(prediction="none", tasks={path: 0.5})
    assert made.weights_at(0, 0) == {"modality_alignment": 0.1, "length_of_words": 0.5}
    found = losses(made, backbone, seen, made.weights_at(0, 0))
    expected = 0.5 * made.adapter(seen.label_embeddings).square().mean()
    torch.testing.assert_close(found["length_of_words"], expected)
    with pytest.raises(ConfigError, match="'no_such_task' is unknown"):
        make(tasks={"no_such_task": 1.0})
