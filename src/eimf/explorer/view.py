"""Computes what the explorer shows, as plain values: users and items to choose, and each run's view of a history."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import polars

from eimf.core.errors import ArtifactError, ConfigError, DataError, LabelError
from eimf.data.prepare import prepare
from eimf.data.prepared import Prepared
from eimf.data.splits import split_sequences
from eimf.explicit.naming import behind_words
from eimf.labels.label import Label
from eimf.labels.source import label_source, read_labels
from eimf.runs.folder import read_results
from eimf.runs.versions import newest_version
from eimf.serving.recommender import Recommendation, Recommender, load

SUGGESTIONS = 8


class User(NamedTuple):
    """A user of the data set."""

    user_id: str
    part: str
    """`train`, `validation` or `test`."""
    history: list[str]
    """Item ids that the model may see, oldest first."""
    later: list[str]
    """Item ids that were held out: what the user chose next."""


@dataclass(frozen=True)
class Run:
    """A run to show."""

    name: str
    model: Recommender


@dataclass(frozen=True)
class Explorer:
    """Several runs of one catalogue, with its users if the prepared data are available."""

    runs: tuple[Run, ...]
    prepared: Prepared | None = None
    missing: str = ""
    """Why there are no users to choose from."""
    labels: dict[str, Label] = field(default_factory=dict)
    """Explicit interests by user id."""
    parts: dict[int, tuple[str, int]] = field(default_factory=dict)
    """Held-out users by index: part of the split, and position in the flat arrays where the targets begin."""

    @property
    def items(self) -> polars.DataFrame:
        """`item_idx, item_id, title, ...` of the catalogue."""
        return self.runs[0].model.items

    def describe(self) -> dict[str, Any]:
        """The runs, and what can be searched."""
        runs = []
        for run in self.runs:
            config = run.model.config
            explicit = " with explicit interests" if config.eimf.enabled else ""
            about = f"{config.backbone.name}{explicit}, {config.dataset.name}, seed {config.seed}"
            about += "" if run.model.filters_seen else ", unfiltered"
            runs.append({"name": run.name, "about": about, "interests": run.model.n_interests})
            runs[-1]["words"] = run.model.texts is not None
        categories = bool((self.items["categories"].list.len() > 0).any())
        users = len(self.prepared.user_ids) if self.prepared is not None else 0
        return {
            "runs": runs,
            "items": len(self.items),
            "users": users,
            "missing": self.missing,
            "categories": categories,
        }

    def suggest(self, text: str) -> dict[str, list[dict[str, str]]]:
        """Users and items that match a search text; for an empty one, a few users to begin with."""
        text = text.strip()
        return {"users": self._users_like(text), "items": self._items_like(text) if text else []}

    def _users_like(self, text: str) -> list[dict[str, str]]:
        if self.prepared is None:
            return []
        ids = self.prepared.user_ids
        if text:
            lower = ids.str.to_lowercase()
            matches = lower.str.contains(text.lower(), literal=True).arg_true()
            starts = lower.gather(matches).str.starts_with(text.lower())
            order = starts.arg_sort(descending=True) if len(matches) else matches
            users = ids.gather(matches.gather(order[:SUGGESTIONS])).to_list()
        else:
            labelled = list(self.labels)[: SUGGESTIONS // 2]
            held = [ids[row] for row in list(self.parts)[:SUGGESTIONS]]
            users = list(dict.fromkeys([*labelled, *held]))[:SUGGESTIONS]
        return [{"id": user, "about": self._about(user)} for user in users]

    def _about(self, user_id: str) -> str:
        user = self.user(user_id)
        labelled = ", interests in words" if user_id in self.labels else ""
        return f"{user.part} user, {len(user.history)} items{labelled}"

    def _items_like(self, text: str) -> list[dict[str, str]]:
        matches = self.items.lazy().filter(
            polars.all_horizontal(
                (polars.col("title") + " " + polars.col("item_id"))
                .str.to_lowercase()
                .str.contains(word.lower(), literal=True)
                for word in text.split()
            )
        )
        rows = matches.head(SUGGESTIONS).select("item_id", "title").collect()  # by descending popularity
        return [{"id": item, "title": title or item} for item, title in rows.iter_rows()]

    def user(self, user_id: str) -> User:
        """A user's history and held-out items.

        Raises:
            DataError: there is no such user, or the users are not available.
        """
        if self.prepared is None:
            raise DataError(self.missing)
        row = self.prepared.user_ids.index_of(user_id)
        if row is None:
            raise DataError(f"user: {user_id!r} is not among the {len(self.prepared.user_ids):,} users; search first.")
        sequences = self.prepared.sequences
        start, end = int(sequences.offsets[row]), int(sequences.offsets[row + 1])
        part, cut = self.parts.get(row, ("train", end))
        ids = self.items["item_id"].gather(sequences.items[start:end] - 1).to_list()
        return User(user_id, part, ids[: cut - start], ids[cut - start :])

    def look(
        self,
        history: Sequence[str],
        later: Sequence[str] = (),
        user_id: str = "",
        n: int = 10,
        diversity: float = 0.0,
        asked: Sequence[str] = (),
    ) -> dict[str, Any]:
        """A history as each run sees it.

        Args:
            history: item ids, oldest first.
            later: items that were held out, marked where they are recommended.
            user_id: whose explicit interests to show, if any.
            n: length of the lists.
            diversity: weight of the controllable aggregation of the merged list.
            asked: interests in words, beside the history or instead of one.

        Raises:
            DataError: the history is empty or has an unknown item.
        """
        if not 1 <= n <= 100:
            raise ConfigError(f"n: must be 1 to 100, is {n}.")
        if not 0 <= diversity <= 10:
            raise ConfigError(f"diversity: must be 0 to 10, is {diversity}.")
        label = self.labels.get(user_id)
        words = label.interests if label is not None else ()
        held = set(later)
        runs = []
        for run in self.runs:
            attended = run.model.attended(history) if history or not asked else []
            lists = run.model.recommend_by_interest(history, n, words=asked)
            count = run.model.n_interests
            matched = behind_words(label, history, attended) if label is not None else []
            interests = [
                {
                    "number": k,
                    "name": items.name if k < count else "",
                    "asked": asked[k - count] if k >= count else "",
                    "words": [interest.name for interest, k_of in zip(words, matched, strict=True) if k_of == k],
                    "history": [place for place, interest in enumerate(attended) if interest == k],
                    "items": self._named(items, held),
                }
                for k, items in enumerate(lists, start=count + len(asked) - len(lists) if asked else 0)
            ]
            merged = self._named(run.model.recommend(history, n, diversity=diversity, words=asked), held)
            unmatched = [interest.name for interest, k_of in zip(words, matched, strict=True) if k_of is None]
            routes = run.model.backbone.routes or count == 1
            runs.append(
                {"name": run.name, "interests": interests, "merged": merged, "unmatched": unmatched, "routes": routes}
            )
        title = self.runs[0].model.title
        return {
            "user": user_id,
            "history": [{"id": item, "title": title(item) or item} for item in history],
            "later": [{"id": item, "title": title(item) or item} for item in later],
            "runs": runs,
        }

    @staticmethod
    def _named(items: list[Recommendation], held: set[str]) -> list[dict[str, Any]]:
        return [
            {
                "id": item.item_id,
                "title": item.title or item.item_id,
                "score": round(item.score, 4),
                "interest": item.interest,
                "chosen": item.item_id in held,
            }
            for item in items
        ]


def open_runs(folders: Sequence[Path]) -> Explorer:
    """Load runs to look at side by side.

    Raises:
        ArtifactError: a folder is not a finished run, or the runs have different catalogues.
    """
    folders = [newest_version(folder) for folder in folders]
    models = [load(folder) for folder in folders]
    digests = {folder: read_results(folder)["data_digest"] for folder in folders}
    for folder, model in zip(folders, models, strict=True):
        if not model.items["item_id"].equals(models[0].items["item_id"]):
            raise ArtifactError(
                f"{folder}: has another catalogue ({len(model.items):,} items) than {folders[0]} "
                f"({len(models[0].items):,}); compare runs of the same prepared data."
            )
        if model.config.split != models[0].config.split or digests[folder] != digests[folders[0]]:
            raise ArtifactError(
                f"{folder}: has other data or another split than {folders[0]}, so that what one held out the other may "
                "have been trained on; compare runs of the same data and split."
            )
    names = _names([folder.resolve().parts for folder in folders])
    runs = tuple(Run(name, model) for name, model in zip(names, models, strict=True))
    config = models[0].config
    try:
        prepared = prepare(config.dataset, config.data.root, digest=digests[folders[0]])
    except (DataError, ArtifactError, OSError) as error:
        return Explorer(runs, missing=f"No users to choose from: {error}")
    if prepared.digest != digests[folders[0]]:
        missing = "No users to choose from: the prepared data are not those that the run was trained on."
        return Explorer(runs, missing=missing)
    held = split_sequences(prepared.sequences, config.split)
    parts = {
        int(user): (name, int(cut))
        for name, holdout in (("validation", held.validation), ("test", held.test))
        for user, cut in zip(holdout.user_idx, holdout.cut, strict=True)
    }
    sources = [model.config for model in models if model.config.eimf.enabled] or [config]
    try:
        known = set(prepared.user_ids)
        labels = {label.user_id: label for label in read_labels(label_source(sources[0])) if label.user_id in known}
    except LabelError:
        labels = {}
    return Explorer(runs, prepared, labels=labels, parts=parts)


def _names(folders: list[tuple[str, ...]]) -> list[str]:
    """The folders without the parents that they share, but with at least one parent."""
    same = 0
    while all(len(parts) - 2 > same and parts[same] == folders[0][same] for parts in folders):
        same += 1
    return ["/".join(parts[same:]) for parts in folders]
