"""A simulated shop whose customers' true interests are known: the built-in data set `demo`.

A *theme* is a style within a department ("compact kitchen things"). A user has one to five themes, which
change over time. The user buys from one theme for a while, often an item next to the last one from that theme, and
sometimes an unrelated item. The theme of each purchase is kept, so that the recovery of interests can be measured.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars

from eimf.config.schema import DatasetConfig
from eimf.core.options import option
from eimf.data.sources.base import ITEM_SCHEMA, Interactions, RawData, Source


@dataclass(frozen=True)
class DemoConfig(DatasetConfig):
    """Options of `source: demo`, the simulated shop."""

    n_users: int = option(3200, low=10)
    """Users before the k-core filter."""
    n_items: int = option(1600, low=50)
    """Items before the k-core filter."""
    mean_length: float = option(14.0, low=5)
    """Mean number of interactions of a user before the filter."""
    seed: int = option(0, low=0)
    """Seed of the simulator."""


NOISE = -1
"""True interest of an interaction that came from none of the user's interests."""


MAX_INTERESTS, MAX_LENGTH = 5, 60


_SWITCH, _FOLLOW, _NOISE, _DRIFT = 0.35, 0.5, 0.08, 0.02  # probabilities of one step


_DEPARTMENTS = {
    "Kitchen": ["Chef Knife", "Saucepan", "Cutting Board", "Coffee Grinder", "Spice Rack", "Mixing Bowl"],
    "Garden": ["Pruning Shears", "Watering Can", "Plant Pot", "Seed Tray", "Garden Hose", "Bird Feeder"],
    "Office": ["Desk Lamp", "Fountain Pen", "Notebook", "Cable Organizer", "Paper Shredder", "Wrist Rest"],
    "Music": ["Guitar Strings", "Metronome", "Drumsticks", "Microphone Stand", "Ukulele", "Keyboard Bench"],
    "Outdoors": ["Tent", "Sleeping Bag", "Trekking Poles", "Camp Stove", "Headlamp", "Water Filter"],
    "Fitness": ["Yoga Mat", "Resistance Band", "Kettlebell", "Foam Roller", "Jump Rope", "Pull-up Bar"],
    "Pets": ["Dog Leash", "Cat Tree", "Aquarium Heater", "Hamster Wheel", "Pet Carrier", "Chew Toy"],
    "Crafts": [
        "Knitting Needles",
        "Watercolor Set",
        "Glue Gun",
        "Quilting Ruler",
        "Clay Tools",
        "Embroidery Hoop",
    ],
    "Beauty": ["Face Cream", "Hair Brush", "Nail Polish", "Lip Balm", "Makeup Mirror", "Shampoo Bar"],
    "Baby": ["Stroller", "Bottle Warmer", "Teething Ring", "Crib Sheet", "Diaper Bag", "Play Mat"],
    "Cycling": ["Bike Helmet", "Chain Lube", "Bike Lock", "Saddle Bag", "Floor Pump", "Cycling Gloves"],
    "Photography": ["Camera Strap", "Tripod", "Lens Filter", "Light Box", "Memory Card Case", "Photo Album"],
}


_STYLES = {
    "Eco": ["Recycled", "Bamboo", "Organic", "Plastic-Free", "Solar"],
    "Compact": ["Folding", "Travel", "Mini", "Pocket", "Slim"],
    "Professional": ["Pro", "Heavy-Duty", "Studio", "Precision", "Titanium"],
    "Playful": ["Rainbow", "Cartoon", "Glow-in-the-Dark", "Retro", "Pastel"],
}


_BRAND_PARTS = (
    ["Nor", "Al", "Ve", "Tor", "Mi", "Ka", "Bel", "Sun"],
    ["dal", "mora", "vik", "lune", "sto", "rra"],
)


_COLORS = ["Black", "Sand", "Teal", "Coral", "Slate", "Ivory", "Moss", "Plum"]


_PACKS = ["", " (2-Pack)", " (Gift Set)", ", Large", ", Small", ", 2nd Edition"]


class Shop(NamedTuple):
    """A catalogue without its texts: items of a theme are neighbours."""

    themes: list[tuple[str, str]]
    """Department and style."""
    share: np.ndarray
    """f64[T]: how many users have the theme."""
    sizes: np.ndarray
    """i64[T]: number of items of each theme."""
    starts: np.ndarray
    """i64[T + 1]: first item of each theme; the last one is the number of items."""


def simulate(config: DemoConfig) -> RawData:
    """Generate the shop. Time and memory are linear in users x mean length; no step loops over users."""
    rng = np.random.default_rng(config.seed)
    shop = furnish(rng, config.n_items)
    interactions = browse(rng, shop, config.n_users, config.mean_length)
    return RawData(Interactions.of(interactions), describe(rng, shop))


def furnish(rng: np.random.Generator, n_items: int) -> Shop:
    """Choose themes and how many items each has."""
    themes = _themes()
    share = rng.dirichlet(np.full(len(themes), 3.0))
    sizes = np.maximum(rng.multinomial(n_items, 0.5 * share + 0.5 / len(themes)), 3)
    return Shop(themes, share, sizes, np.concatenate([[0], np.cumsum(sizes)]))


def browse(rng: np.random.Generator, shop: Shop, n_users: int, mean_length: float, first: int = 0) -> polars.DataFrame:
    """Interactions of users numbered from `first`: `user_id, item_id, timestamp, interest`."""
    user, item, interest, time = _histories(rng, n_users, mean_length, shop)
    return polars.DataFrame(
        {
            "user_id": "u" + polars.Series(first + user).cast(polars.String).str.zfill(6),
            "item_id": _item_ids(item),
            "timestamp": time,
            "interest": interest.astype(np.int32),
        }
    )


def _themes() -> list[tuple[str, str]]:
    return [(department, style) for department in _DEPARTMENTS for style in _STYLES]


def _item_ids(items: np.ndarray) -> polars.Series:
    return ("P" + polars.Series("item_id", items).cast(polars.String).str.zfill(5)).alias("item_id")


def _log_uniform(rng: np.random.Generator, n: int | np.ndarray, size: int) -> np.ndarray:
    """Ranks from 0 to n - 1 whose probability falls about as 1 / (rank + 1)."""
    return np.minimum(np.exp(rng.random(size) * np.log(np.add(n, 1))).astype(np.int64) - 1, np.subtract(n, 1))


def _histories(
    rng: np.random.Generator, n: int, mean_length: float, shop: Shop
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Users, items, true themes and times of all interactions, by user and time, no item twice for a user."""
    _, share, sizes, starts = shop
    everyone = np.arange(n)
    longest = max(MAX_LENGTH, int(3 * mean_length))
    length = np.minimum(5 + rng.exponential(max(mean_length - 5, 1e-9), n), longest).astype(np.int64)
    n_interests = rng.choice(np.arange(1, MAX_INTERESTS + 1), n, p=[0.15, 0.3, 0.3, 0.15, 0.1])
    theme = rng.choice(len(share), (n, MAX_INTERESTS), p=share)
    weight = rng.gamma(1.5, 1.0, (n, MAX_INTERESTS)) * (np.arange(MAX_INTERESTS) < n_interests[:, None])
    reach = np.cumsum(weight, axis=1) / weight.sum(axis=1, keepdims=True)
    last = np.full((n, MAX_INTERESTS), -1)  # position of the last item from each interest
    popular = rng.permutation(int(starts[-1]))
    start_time = 1_600_000_000 + rng.integers(0, 2 * 365 * 86_400, n)
    active = np.zeros(n, dtype=np.int64)
    taken_user, taken_item, taken_theme, taken_time = [], [], [], []
    clock = start_time.astype(np.float64)
    for step in range(int(length.max())):
        switch = rng.random(n) < (1.0 if step == 0 else _SWITCH)
        fresh = np.minimum((rng.random(n)[:, None] > reach).sum(axis=1), n_interests - 1)
        active = np.where(switch, fresh, active)
        drift = np.flatnonzero(rng.random(n) < _DRIFT)
        theme[drift, active[drift]] = rng.choice(len(share), len(drift), p=share)
        last[drift, active[drift]] = -1
        current, previous = theme[everyone, active], last[everyone, active]
        follow = (rng.random(n) < _FOLLOW) & (previous >= 0)
        neighbour = (previous + rng.integers(1, 4, n)) % sizes[current]
        place = np.where(follow, neighbour, _log_uniform(rng, sizes[current], n))
        noise = rng.random(n) < _NOISE
        item = np.where(noise, popular[_log_uniform(rng, int(starts[-1]), n)], starts[current] + place)
        last[everyone, active] = np.where(noise, previous, place)
        clock += rng.exponential(6 * 86_400, n) + 60
        here = step < length
        taken_user.append(everyone[here])
        taken_item.append(item[here])
        taken_theme.append(np.where(noise, NOISE, current)[here])
        taken_time.append(clock[here].astype(np.int64))
    user, item, interest, time = (np.concatenate(part) for part in (taken_user, taken_item, taken_theme, taken_time))
    order = np.argsort(user, kind="stable")  # steps are in time order already
    user, item, interest, time = user[order], item[order], interest[order], time[order]
    _, first = np.unique(user * int(starts[-1]) + item, return_index=True)
    keep = np.sort(first)
    return user[keep], item[keep], interest[keep], time[keep]


def describe(rng: np.random.Generator, shop: Shop) -> polars.DataFrame:
    """Items with titles such as "Norvik Folding Camp Stove, Teal (2-Pack)"."""
    themes, starts, n = shop.themes, shop.starts, int(shop.starts[-1])
    theme = np.searchsorted(starts, np.arange(n), side="right") - 1
    kind, adjective, color = rng.integers(0, 6, n), rng.integers(0, 5, n), rng.integers(0, len(_COLORS), n)
    pack = rng.choice(len(_PACKS), n, p=[0.6, 0.1, 0.1, 0.08, 0.08, 0.04])
    first, second = rng.integers(0, 8, n), rng.integers(0, 6, n)
    rows = []
    for index in range(n):
        department, style = themes[theme[index]]
        noun = _DEPARTMENTS[department][kind[index]]
        brand = _BRAND_PARTS[0][first[index]] + _BRAND_PARTS[1][second[index]]
        title = f"{brand} {_STYLES[style][adjective[index]]} {noun}, {_COLORS[color[index]]}{_PACKS[pack[index]]}"
        rows.append((title, [department, f"{noun}s" if not noun.endswith("s") else noun], brand))
    texts = polars.DataFrame(rows, schema=["title", "categories", "brand"], orient="row")
    return texts.with_columns(_item_ids(np.arange(n))).select(list(ITEM_SCHEMA))


def read(dataset: DemoConfig, interactions: Path, items: Path | None) -> RawData:
    """The simulated data; no files are read."""
    return simulate(dataset)


SOURCE = Source(DemoConfig, read, needs_files=False)
