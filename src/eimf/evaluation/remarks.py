"""Sentences about what is remarkable in the interests of a model."""

from collections.abc import Mapping

from eimf.evaluation.agreement import METRIC

COLLAPSED_COSINE, COLLAPSED_OVERLAP, ONE_FOR_ALL, CHANCE = 0.9, 0.8, 0.8, 0.05


def describe_interests(summary: Mapping[str, float]) -> tuple[str, ...]:
    """Say whether interests have collapsed into one, and whether they agree with labels.

    Args:
        summary: metric key -> value, as in `Evaluation.summary`.
    """
    found = []
    cosine = summary.get("interest_cosine", 0.0)
    overlap = max((value for key, value in summary.items() if key.startswith("interest_overlap@")), default=None)
    if cosine > COLLAPSED_COSINE or (overlap or 0.0) > COLLAPSED_OVERLAP:
        shared = f", and their lists share {overlap:.0%} of their items" if overlap is not None else ""
        found.append(
            f"The interests of a user are nearly one: mean cosine {cosine:.2f}{shared}. The model works like one of a "
            "single interest; compare it with backbone.n_interests=1. Prototypes (eimf.prototypes=text needs no "
            "labels), or a smaller loss.routing_weight where it is above 0, may separate them."
        )
    shares = [value for key, value in summary.items() if key.startswith("hit_share")]
    if len(shares) > 1 and max(shares) > ONE_FOR_ALL:
        found.append(f"One interest finds {max(shares):.0%} of all hits; the others add little.")
    if summary.get(METRIC, 1.0) < CHANCE:
        found.append(
            f"The interests group a user's items differently than the labels do (agreement {summary[METRIC]:.2f}; 0 is "
            "chance)."
        )
    return tuple(found)
