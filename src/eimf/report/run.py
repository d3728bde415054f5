"""Builds the sections about one run, from the files in its folder and the prepared data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars
import torch

from eimf.config.load import load
from eimf.config.schema import Config
from eimf.core.errors import ArtifactError, ConfigError, LabelError
from eimf.data.batch import gather_history
from eimf.data.prepare import prepare
from eimf.data.prepared import Prepared, statistics
from eimf.data.splits import Holdout
from eimf.evaluation.agreement import attended, measure_agreement
from eimf.evaluation.groups import place_of_level
from eimf.evaluation.remarks import CHANCE, describe_interests
from eimf.explicit.naming import behind_words
from eimf.labels.cache import LabelCache
from eimf.labels.label import newest_labels
from eimf.labels.quality import assess_items, describe
from eimf.labels.source import is_cache, label_source, read_labels
from eimf.report.figures import intervals, lines, panels, points
from eimf.report.page import Section, number
from eimf.runs.curves import read_curves
from eimf.runs.folder import read_frame, read_results
from eimf.serving.recommender import Recommender
from eimf.serving.recommender import load as load_model
from eimf.training.build import build_data
from eimf.training.datamodule import InteractionData
from eimf.training.evaluate import evaluate_baselines, group_held_out

MAP_ITEMS = 2_000
"""Most items that the map shows: more would hide each other, and make the page slow."""
USE = ("interest_cosine", "interests_used", "hit_share")


def describe_run(folder: Path) -> list[Section]:
    """Sections about a finished run.

    Raises:
        ArtifactError: the run is not finished, or its data cannot be prepared now.
    """
    results = read_results(folder)
    config = load(folder / "config.yaml")
    part = "test" if "test" in results else "val"
    prepared = prepare(config.dataset, config.data.root, digest=results["data_digest"])
    if prepared.digest != results["data_digest"]:
        raise ArtifactError(f"{folder}: was made from data {results['data_digest'][:12]}, not {prepared.digest[:12]}.")
    data = build_data(config, prepared, labelled=False)
    held = data.split.test if part == "test" else data.split.validation
    shown = next(name for name in results[part] if name.startswith("recall@"))
    summary = results[part]
    answer = (
        f"{config.backbone.name} on {config.dataset.name} ({config.split.kind} split, seed {config.seed}) finds "
        f"{summary[shown]:.3f} of what {part} users choose next among {shown.split('@')[1]} recommendations "
        + (
            "that they do not have yet."
            if results.get("filter_seen")
            else "(unfiltered: the lists may hold what they have)."
        )
    )
    keys = [key for key in summary if not key.startswith(("untied/", "raw/", "proportional/", *USE))]
    beside = [prefix for prefix in ("raw", "untied") if any(key.startswith(f"{prefix}/") for key in summary)]
    baselines = {
        name: evaluation.summary
        for name, evaluation in evaluate_baselines(config, prepared, part).items()
        if name != config.backbone.name
    }
    rows = tuple(
        (
            key,
            *(number(results.get(p, {}).get(key)) for p in ("val", "test")),
            *(number(values.get(key)) for values in baselines.values()),
            *(number(summary.get(f"{prefix}/{key}")) for prefix in beside),
        )
        for key in keys
    )
    head = ("metric", "val", "test", *(f"{name}, {part}" for name in baselines))
    head += tuple(f"{part}, {prefix}" for prefix in beside)
    curves = read_curves(folder / "metrics.csv")
    best = best_epoch(curves, config.monitor)
    remarks = (*_beside(summary, baselines, shown), *_remarks(summary, config, curves, best))
    sections = [Section("Result", (answer, *remarks), head, rows), _data(prepared, results)]
    charts = _curves(curves, best)
    if charts:
        said = (f"The dotted line is epoch {best}, whose model was kept." if best else "",)
        sections.append(Section("Learning curves", said, charts=charts))
    name, k = shown.split("@")
    values = read_frame(folder / "metrics.parquet").filter(part=part, metric=name, k=int(k))
    groups = group_held_out(config, data, part)
    table = (
        groups.join(values.with_columns(polars.col("user_idx").cast(polars.Int32)), on="user_idx")
        .group_by("group", "level")
        .agg(polars.len().alias("users"), polars.col("value").mean(), polars.col("value").std().alias("spread"))
        .sort("group", polars.col("level").map_elements(place_of_level, polars.Int64))
    )
    sections.append(_groups(table, shown, summary[shown]))
    curve = results.get("trade_off", {}).get(part, [])
    if len(curve) > 1:
        sections.append(_trade_off(curve, shown))
    used = tuple((key, number(value)) for key, value in summary.items() if key.startswith((*USE, "proportional/")))
    if used:
        text = (
            "interest_cosine: how similar a user's interest vectors are (1: all the same). interests_used: the "
            "effective number of interests in the list. hit_share: each interest's share of the hits. proportional: "
            "of lists in which each interest has its share of the places, see merge=proportional."
        )
        sections.append(Section("How interests are used", (text,), ("measure", "value"), used))
    sections += _label_quality(config, prepared)
    sections += _model_sections(folder, data, held)
    costs = tuple(
        (key.replace("_", " "), number(int(value) if key == "epochs" else value))
        for key, value in results.get("costs", {}).items()
    )
    costs += _label_costs(config)
    if costs:
        sections.append(Section("Costs", head=("what", "value"), rows=costs))
    origin = (folder / "run.json").read_text() if (folder / "run.json").is_file() else "no run.json\n"
    code = f"eimf train {folder}/config.yaml\n\n{origin}\n{(folder / 'config.yaml').read_text()}"
    return [*sections, Section("Repeat it", code=code)]


def _groups(table: polars.DataFrame, shown: str, mean: float) -> Section:
    """The metric by level of each group, with normal 95% intervals of the mean."""
    rows = tuple((g, level, number(users), number(value)) for g, level, users, value, _ in table.iter_rows())
    bars = []
    for group, level, users, value, spread in table.iter_rows():
        error = 1.96 * (spread or 0.0) / users**0.5
        bars.append((f"{group}: {level}", value, max(value - error, 0.0), value + error))
    chart = intervals(bars, f"{shown} with 95% interval; line: all users", mean)
    return Section("Groups of users", head=("group", "level", "users", shown), rows=rows, charts=(chart,))


def _label_quality(config: Config, prepared: Prepared) -> list[Section]:
    """Quality of the explicit interests that a run was trained with."""
    if not config.eimf.enabled:
        return []
    source = label_source(config)
    try:
        labels = newest_labels(read_labels(source))
        quality = assess_items(labels, prepared.items, config.text.encoder, config.data.root)
    except (LabelError, ConfigError):  # the labels or the encoder may be gone since the training
        return []
    counts = {"ok": len(labels)}
    if is_cache(source):
        with LabelCache(source, read_only=True) as cache:
            counts = cache.counts()
    text = "Of all labels in the source; those of held-out users are not used in training."
    return [Section("Explicit interests", (text,), ("check", "value"), tuple(describe(quality, counts).items()))]


def _label_costs(config: Config) -> tuple[tuple[str, str], ...]:
    """Replies, tokens and seconds of the explicit interests, if they are in a label cache."""
    source = label_source(config)
    if not config.eimf.enabled or not source.is_file() or not is_cache(source):
        return ()
    with LabelCache(source, read_only=True) as cache:
        records = cache.records()
    total = {
        "replies of the LLM": len(records),
        "tokens in": sum(record.tokens_in for record in records),
        "tokens out": sum(record.tokens_out for record in records),
        "seconds of the LLM": round(sum(record.seconds for record in records)),
    }
    return tuple((name, f"{value:,}") for name, value in total.items())


def _trade_off(curve: list[dict[str, float]], shown: str) -> Section:
    """Accuracy against diversity over the weights of the controllable aggregation."""
    wider = shown.replace("recall", "diversity")
    line = {"lambda, rising from left to right": ([point[wider] for point in curve], [point[shown] for point in curve])}
    rows = tuple(
        (f"{point['lambda']:g}", *(number(value) for name, value in point.items() if name != "lambda"))
        for point in curve
    )
    chart = lines(line, f"{wider}: share of pairs of different categories", shown)
    return Section("Accuracy against diversity", head=tuple(curve[0]), rows=rows, charts=(chart,))


def best_epoch(rows: Sequence[Mapping[str, float]], monitor: str) -> int | None:
    """The epoch, counted from 1, with the best monitored value."""
    scored = [row for row in rows if monitor in row]
    return int(max(scored, key=lambda row: row[monitor])["epoch"]) + 1 if scored else None


def _curves(rows: Sequence[Mapping[str, float]], best: int | None) -> tuple[str, ...]:
    """Validation metrics in one chart, and each term of the training loss in a panel of its own."""

    def curves(prefix: str) -> dict[str, tuple[list[float], list[float]]]:
        names = dict.fromkeys(name for row in rows for name in row if name.startswith(prefix))
        logged = {name: [row for row in rows if name in row] for name in names}
        return {
            name: ([row["epoch"] + 1 for row in found], [row[name] for row in found]) for name, found in logged.items()
        }

    terms, recalls = curves("train/"), curves("val/recall")
    charts = [lines(recalls, "epoch", "recall, validation users", best)] if recalls else []
    if terms:
        charts.append(panels(terms, "epoch", best))
    return tuple(charts)


def _beside(summary: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]], shown: str) -> tuple[str, ...]:
    """A sentence that sets the result beside those of models without training."""
    said = [f"{name} {values[shown]:.3f}" for name, values in baselines.items()]
    if not said:
        return ()
    text = f"Without training, on the same users: {', '.join(said)}."
    best = max(values[shown] for values in baselines.values())
    return (text + (" The model is not above all of them." if summary[shown] <= best else ""),)


def _remarks(
    summary: Mapping[str, float], config: Config, rows: Sequence[Mapping[str, float]], best: int | None
) -> tuple[str, ...]:
    """Sentences about what is remarkable in the results."""
    found = list(describe_interests(summary))
    if best is not None and best == config.trainer.max_epochs == len(rows):
        found.append("The last epoch was the best one: more epochs (trainer.max_epochs) may do better.")
    return tuple(found)


def _data(prepared: Prepared, results: Mapping[str, Any]) -> Section:
    """The usual statistics of the data set, and what preparation repaired."""
    counts = statistics(prepared)
    rows = [(name, number(getattr(counts, name))) for name in ("users", "items", "interactions")]
    rows += [(f"{part} users", number(count)) for part, count in results.get("users", {}).items()]
    rows += [
        ("mean length of a history", f"{counts.mean_length:.2f}"),
        ("median length", f"{counts.median_length:.0f}"),
        ("density", f"{counts.density:.3%}"),
        ("users whose last two interactions have the same time", f"{counts.tied_users:.1%}"),
    ]
    rows += [(name, number(count)) for name, count in prepared.manifest.repairs.items()]
    return Section("Data", head=("what", "value"), rows=tuple(rows))


def _model_sections(folder: Path, data: InteractionData, held: Holdout) -> list[Section]:
    """The map of interests, and the recovery of the true interests if a simulator knows them."""
    model, prepared = load_model(folder), data.prepared
    sequences, length = prepared.sequences, model.config.data.max_len
    start, cut = torch.from_numpy(held.start), torch.from_numpy(held.cut)
    history = gather_history(torch.tensor(sequences.items, dtype=torch.long), start, cut, length)
    with torch.inference_mode():
        batches = [model.backbone(part) for part in history.split(512)]
    vectors = np.concatenate([batch.vectors[:5].float().numpy() for batch in batches])[:5]
    has_map = model.item_vectors().shape[1] > 1  # popularity has one dimension, item_knn none
    sections = [_map(model, prepared, vectors)] if has_map else []
    parts = [shares for batch in batches if (shares := batch.item_shares()) is not None]
    if sequences.interests is not None and parts:
        shares = np.concatenate([part.float().numpy() for part in parts])
        causes = gather_history(torch.tensor(sequences.interests, dtype=torch.long), start, cut, length)
        true = torch.where(history > 0, causes, -1).numpy()
        scores = measure_agreement(attended(shares), true[:, -shares.shape[2] :]).means()
        rows = tuple((key.replace("_", " "), number(value)) for key, value in scores.items())
        text = (
            "The simulator knows which interest caused each purchase. Compared, for each user, with the interest that "
            "attends to it most, over users with at least two true interests: adjusted mutual information (0 is "
            "chance, 1 the same grouping), and accuracy under the best matching, beside that of chance and of putting "
            "everything into one interest."
        )
        if scores.get("agreement", 1.0) < CHANCE:
            text += " Here the agreement is near chance: the interests are not those of the simulator."
        sections.append(Section("Agreement with the true interests", (text,), ("measure", "value"), rows))
    return sections


def _map(model: Recommender, prepared: Prepared, vectors: np.ndarray) -> Section:
    """Items by their first two principal components, with interests of a few users, labelled ones if there are any."""
    with torch.inference_mode():
        items = model.backbone.item_vectors().float().numpy()[1:]
    centre = items.mean(axis=0)
    axes = np.linalg.svd(items - centre, full_matrices=False)[2][:2]
    flat = (items - centre) @ axes.T
    kinds = prepared.categories[1:]
    shown = np.arange(len(items))
    if len(items) > MAP_ITEMS:
        shown = np.sort(np.random.default_rng(0).choice(len(items), MAP_ITEMS, replace=False))
    common = [int(kind) for kind in np.argsort(-np.bincount(kinds))[:5] if kind]
    names = prepared.items["categories"].list.last()
    groups = {}
    for kind in common:
        where = shown[kinds[shown] == kind]
        if len(where):
            groups[str(names[int(where[0])])[:24]] = tuple(flat[where].T.tolist())
    if len(rest := shown[~np.isin(kinds[shown], common)]):
        groups["other items" if groups else "items"] = tuple(flat[rest].T.tolist())
    labelled = _labelled_interests(model)
    if labelled:
        vectors = np.stack([vector for vector, _ in labelled])
    places = (vectors.reshape(-1, vectors.shape[-1]) - centre) @ axes.T
    words = [(float(x), float(y), text) for (x, y), (_, text) in zip(places, labelled, strict=True)] if labelled else []
    stars = "interests of labelled users" if labelled else "interests of 5 users"
    groups[stars] = tuple(places.T.tolist())
    text = ["Stars: behavioural interests of labelled users, with the explicit interest matched to each."]
    text = text if labelled else []
    if len(shown) < len(items):
        text.append(f"{len(shown):,} of {len(items):,} items, sampled at random.")
    return Section("Map of items and interests", tuple(text), charts=(points(groups, stars, words),))


def _labelled_interests(model: Recommender, count: int = 6) -> list[tuple[np.ndarray, str]]:
    """Behavioural interest vectors of a few labelled users, with the words of the matched explicit interests."""
    config = model.config
    if not config.eimf.enabled:
        return []
    try:
        labels = newest_labels(read_labels(label_source(config)))
    except LabelError:
        return []
    pairs: list[tuple[np.ndarray, str]] = []
    for label in labels:
        history = [item for item in label.history if model.knows(item)]
        if len(pairs) >= count or not history:
            continue
        vectors, places = model.interests(history).numpy(), behind_words(label, history, model.attended(history))
        named = [(k, interest.name) for interest, k in zip(label.interests, places, strict=True) if k is not None]
        pairs += [(vectors[k], name if len(name) <= 40 else f"{name[:39]}…") for k, name in named[:2]]
    return pairs[:count]
