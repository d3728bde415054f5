"""Write the tables of results into README.md and docs/explanation/results.md, from files that `eimf compare` wrote.

    cp lightning_logs/<suite folder>/comparison/comparison.json docs/results/<name>.json
    python docs/make_tables.py

A block `<!-- table: NAME METRIC ... [only: VARIANT ...] -->` ... `<!-- /table -->` gets the table of
`docs/results/NAME.json`: means over seeds, standard deviations, and the lift over the baseline, with a star where it is
significant. `<!-- table: NAME references -->` sets its values beside those of others in `published.json`.
`<!-- table: serving latency -->` gets the latencies that `make bench` wrote to `build/serving.json`, and
`<!-- table: NAME groups only: VARIANT ... -->` the lifts by groups of users in `docs/results/NAME-groups.csv`, and
`<!-- table: words-SHOP,words-SHOP words -->` the recall that `python -m eimf.studies.words` wrote, and
`<!-- table: new-SHOP,new-SHOP new -->` that of `python -m eimf.studies.new_items`, and
`<!-- table: warm-SHOP,warm-SHOP warm -->` the epochs that `python -m eimf.studies.warm_start` counted.
"""

import csv
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).parent
HOWTO = DOCS / "howto"
PAGES = (
    *(DOCS.parent / "README.md", DOCS / "explanation" / "results.md"),
    *(HOWTO / f"{name}.md" for name in ("http", "words", "retrain")),
)
BLOCK = re.compile(r"(<!-- table: (.*?) -->\n).*?(<!-- /table -->)", re.DOTALL)


def table(found: dict[str, Any], metrics: list[str], only: list[str]) -> str:
    """Markdown of a comparison."""
    variants = [name for name in found["cells"] if not only or name in only]
    lines = ["| variant | " + " | ".join(metrics) + " |", "| --- |" + " ---: |" * len(metrics)]
    for variant in variants:
        row = [cell(found["cells"][variant].get(metric)) or described(found, variant, metric) for metric in metrics]
        lines.append(f"| {labels_of(found).get(variant, variant)} | " + " | ".join(row) + " |")
    return "\n".join([*lines, "", source(found)])


def labels_of(found: dict[str, Any]) -> dict[str, str]:
    """Names of variants for people, as the file of the suite has them."""
    suite = DOCS.parent / "experiments" / "suites" / f"{found['name'].partition('-')[2]}.yaml"
    variants = yaml.safe_load(suite.read_text(encoding="utf-8"))["variants"]
    return {name: settings["label"] for name, settings in variants.items() if "label" in settings}


def cell(value: dict[str, Any] | None) -> str:
    """A mean with its deviation and lift."""
    if value is None or value["mean"] is None:
        return ""
    text = f"{value['mean']:.4f}" + (f" ± {value['deviation']:.4f}" if value["deviation"] is not None else "")
    if value["lift"] is None:
        return text
    lift = f"{value['lift']:+.1%}" if value["relative"] else f"{value['lift']:+.3f}"
    return text + f" ({lift}{'*' if value['p'] is not None and value['p'] < 0.05 else ''})"


def described(found: dict[str, Any], variant: str, name: str) -> str:
    """A value about a variant's interests and lists, which has no test of significance."""
    value = found.get("lists", {}).get(variant, {}).get(name)
    return "" if value is None else f"{value:.2f}"


def source(found: dict[str, Any]) -> str:
    """Where a table comes from."""
    about = found["about"]
    seeds = sorted({seed for runs in found["runs"].values() for seed in runs}, key=int)
    users = f"{about['users'][found['part']]:,} {'test' if found['part'] == 'test' else 'validation'} users"
    seed = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"
    if about.get("resplit"):
        users, seed = f"{len(seeds)} splits with {users} each", f"{seed} (of split and training)"
    return (
        f"`{about['command']}`: {users}, {about['split']} split, {seed}; lifts over "
        f"`{found['baseline']}`, * p < 0.05 after Holm's correction (paired bootstrap over users and seeds). "
        f"{on(about['machine'])}"
    )


REFERENCE = ("hr@10", "ndcg@10", "raw/hr@10", "raw/ndcg@10")


def references(found: dict[str, Any], published: list[dict[str, Any]]) -> str:
    """Our values beside those that others published under the same protocol."""
    lines = [
        "| model | whose | HR@10 | NDCG@10 | HR@10, unfiltered | NDCG@10, unfiltered |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for variant, cells in found["cells"].items():
        row = [cell((cells.get(metric) or {"mean": None}) | {"lift": None}) for metric in REFERENCE]
        lines.append(f"| {labels_of(found).get(variant, variant)} | ours | " + " | ".join(row) + " |")
    for one in published:
        row = [f"{one[metric]:.4f}" for metric in REFERENCE[:2]] + ["", ""]
        seeds = f"{one['seeds']} seed{'s' if one['seeds'] > 1 else ''}"
        whose = f"[{one['source']}]({one['address']}), {seeds}"
        lines.append(f"| {one['model']}, {one['loss']} | {whose} | " + " | ".join(row) + " |")
    return "\n".join([*lines, "", source(found)])


def groups(path: Path, variants: list[str], named: dict[str, str]) -> str:
    """Markdown of the lifts by groups of users that `eimf compare --groups` wrote."""
    with path.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["variant"] in variants]
    lines = ["| group | level | users | " + " | ".join(named.get(one, one) for one in variants) + " |"]
    lines.append("| --- | --- | ---: |" + " ---: |" * len(variants))
    for group, level in dict.fromkeys((row["group"], row["level"]) for row in rows):
        cells = {row["variant"]: row for row in rows if (row["group"], row["level"]) == (group, level)}
        lifts = [{key: float(cells[one][key]) for key in ("lift", "low", "high")} for one in variants]
        shown = [f"{one['lift']:+.1%} ({one['low']:+.1%} to {one['high']:+.1%})" for one in lifts]
        users = int(next(iter(cells.values()))["users"])
        lines.append(f"| {group} | {level} | {users:,} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def latencies(found: dict[str, Any]) -> str:
    """Markdown of `tests/benchmarks/test_serving.py`."""
    lines = [
        "| items | index | clients | together | p50, ms | p99, ms | requests/s |",
        "| ---: | --- |" + " ---: |" * 5,
    ]
    for case in found["cases"]:
        times = f"{case['p50']:,.1f} | {case['p99']:,.1f} | {case['rate']:,.0f}"
        lines.append(f"| {case['items']:,} | {case['index']} | {case['clients']} | {case['together']} | {times} |")
    return "\n".join(
        [*lines, "", f"`pytest tests/benchmarks/test_serving.py -s --override-ini addopts=`. {on(found['machine'])}"]
    )


def words(shops: dict[str, dict[str, Any]]) -> str:
    """Markdown of what `python -m eimf.studies.words` wrote about several shops."""
    return recalls("recall@50 of test users", "users", shops, lambda recall: recall["test"])


def new_items(shops: dict[str, dict[str, Any]]) -> str:
    """Markdown of what `python -m eimf.studies.new_items` wrote about several shops."""
    head = f"recall@{next(iter(shops.values()))['n']} of new items, all items listed"
    return recalls(head, "test users", shops, lambda recall: recall["test"]["all items"])


def recalls(head: str, users: str, shops: dict[str, dict[str, Any]], value: Callable[[Any], float]) -> str:
    """Markdown of recall by method and shop, with the numbers of users in the last row."""
    lines = [f"| {head} | " + " | ".join(shops) + " |", "| --- |" + " ---: |" * len(shops)]
    for name in dict.fromkeys(name for shop in shops.values() for name in shop["recall"]):
        recall = [shop["recall"].get(name) for shop in shops.values()]
        lines.append(f"| {name} | " + " | ".join("" if one is None else f"{value(one):.3f}" for one in recall) + " |")
    lines.append(f"| *{users}* | " + " | ".join(str(shop["users"]["test"]) for shop in shops.values()) + " |")
    return "\n".join(lines)


def warm(shops: dict[str, dict[str, Any]]) -> str:
    """Markdown of what `python -m eimf.studies.warm_start` wrote about several shops."""
    lines = [
        "| shop | new interactions | best from scratch | epochs | warm: as good after | its best | epochs |",
        "| --- |" + " ---: |" * 6,
    ]
    for shop, found in shops.items():
        counts, scratch, again = found["interactions"], found["scratch"], found["warm"]
        new = f"{counts['whole'] - counts['earlier']:,} of {counts['whole']:,}"
        reached = "never" if found["reached"] is None else f"{found['reached']} epochs"
        values = f"{scratch['value']:.4f} | {scratch['epoch']} | {reached} | {again['value']:.4f} | {again['epoch']}"
        lines.append(f"| {shop} | {new} | {values} |")
    first = next(iter(shops.values()))
    return "\n".join(
        [*lines, "", f"{first['metric'].removeprefix('val/')} of validation users. {on(first['machine'])}"]
    )


BY_SHOP = {"words": words, "new": new_items, "warm": warm}
"""Tables of several shops, by the last word of their block; the files are called `<word>-<shop>.json`."""


def on(machine: dict[str, Any]) -> str:
    """The machine that made a table."""
    return f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, torch {machine['torch']}."


def fill(text: str) -> str:
    """The page with its tables renewed."""

    def renew(match: re.Match[str]) -> str:
        wanted, _, only = match[2].partition(" only: ")
        name, *metrics = wanted.split()
        files = {
            one: json.loads((DOCS / "results" / f"{one}.json").read_text(encoding="utf-8")) for one in name.split(",")
        }
        if metrics == ["groups"]:
            made = groups(DOCS / "results" / f"{name}-groups.csv", only.split(), labels_of(files[name]))
        elif metrics == ["references"]:
            published = json.loads((DOCS / "results" / "published.json").read_text(encoding="utf-8"))
            made = references(files[name], published[name])
        elif len(metrics) == 1 and (kind := metrics[0]) in BY_SHOP:
            shops = {one.removeprefix(f"{kind}-").replace("_", " "): found for one, found in files.items()}
            made = BY_SHOP[kind](shops)
        else:
            made = latencies(files[name]) if metrics == ["latency"] else table(files[name], metrics, only.split())
        return f"{match[1]}{made}\n{match[3]}"

    return BLOCK.sub(renew, text)


if __name__ == "__main__":
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = fill(before)
        if "--check" in sys.argv and after != before:
            sys.exit(f"{page}: its tables are not those of docs/results; run python docs/make_tables.py")
        page.write_text(after, encoding="utf-8")
