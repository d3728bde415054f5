"""Write the tables of results into README.md and docs/explanation/results.md, from files that `eimf compare` wrote.

    cp lightning_logs/<suite folder>/comparison/comparison.json docs/results/<name>.json
    python docs/make_tables.py

A block `<!-- table: NAME METRIC ... [only: VARIANT ...] -->` ... `<!-- /table -->` gets the table of
`docs/results/NAME.json`: means over seeds, standard deviations, and the lift over the baseline, with a star where it is
significant. `<!-- table: serving latency -->` gets the latencies that `make bench` wrote to `build/serving.json`, and
`<!-- table: words-SHOP,words-SHOP words -->` the recall that `python -m eimf.studies.words` wrote.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
HOWTO = DOCS / "howto"
PAGES = (DOCS.parent / "README.md", DOCS / "explanation" / "results.md", HOWTO / "http.md", HOWTO / "words.md")
BLOCK = re.compile(r"(<!-- table: (.*?) -->\n).*?(<!-- /table -->)", re.DOTALL)


def table(found: dict[str, Any], metrics: list[str], only: list[str]) -> str:
    """Markdown of a comparison."""
    variants = [name for name in found["cells"] if not only or name in only]
    lines = ["| variant | " + " | ".join(metrics) + " |", "| --- |" + " ---: |" * len(metrics)]
    for variant in variants:
        row = [cell(found["cells"][variant].get(metric)) for metric in metrics]
        lines.append(f"| {variant} | " + " | ".join(row) + " |")
    return "\n".join([*lines, "", source(found)])


def cell(value: dict[str, Any] | None) -> str:
    """A mean with its deviation and lift."""
    if value is None or value["mean"] is None:
        return ""
    text = f"{value['mean']:.4f}" + (f" ± {value['deviation']:.4f}" if value["deviation"] is not None else "")
    if value["lift"] is None:
        return text
    lift = f"{value['lift']:+.1%}" if value["relative"] else f"{value['lift']:+.3f}"
    return text + f" ({lift}{'*' if value['p'] is not None and value['p'] < 0.05 else ''})"


def source(found: dict[str, Any]) -> str:
    """Where a table comes from."""
    about = found["about"]
    seeds = sorted({seed for runs in found["runs"].values() for seed in runs}, key=int)
    users = f"{about['users'][found['part']]:,} {'test' if found['part'] == 'test' else 'validation'} users"
    return (
        f"`{about['command']}`: {users}, {about['split']} split, seeds {', '.join(seeds)}; lifts over "
        f"`{found['baseline']}`, * p < 0.05 after Holm's correction (paired bootstrap over users and seeds). "
        f"{on(about['machine'])}"
    )


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
    lines = ["| recall@50 of test users | " + " | ".join(shops) + " |", "| --- |" + " ---: |" * len(shops)]
    for name in next(iter(shops.values()))["recall"]:
        row = [f"{shop['recall'][name]['test']:.3f}" for shop in shops.values()]
        lines.append(f"| {name} | " + " | ".join(row) + " |")
    lines.append("| *users* | " + " | ".join(str(shop["users"]["test"]) for shop in shops.values()) + " |")
    return "\n".join(lines)


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
        if metrics == ["words"]:
            made = words({one.removeprefix("words-").replace("_", " "): found for one, found in files.items()})
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
