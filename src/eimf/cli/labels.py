"""The commands `eimf label ...`: choose typical users, ask an LLM about them, manage the replies."""

import argparse
import asyncio
import os
from collections.abc import Callable, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from eimf.cli.arguments import Commands, add_command, add_experiment, epilog, load_experiment
from eimf.core.errors import ConfigError, LabelError

if TYPE_CHECKING:
    import numpy as np

    from eimf.config import Config
    from eimf.data.prepared import Prepared
    from eimf.data.splits import Spans
    from eimf.labels.backends.base import Backend
    from eimf.labels.label import LabelRequest
    from eimf.labels.typical import Typical

PAGE = "howto/labels.md"
Command = Callable[[argparse.Namespace, "Config"], None]


def add_commands(groups: Commands) -> None:
    """Add `eimf label run`, `export`, `import`, `stats`, `show` and `check`."""
    text = "explicit interests by an LLM: run, export, import, stats, show, check"
    label = groups.add_parser(
        "label",
        help=text,
        description=f"Asks for and manages {text}.",
        epilog=epilog(("eimf label run --dataset demo --dry-run", "eimf label stats --dataset demo"), PAGE),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = label.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Command, text: str, *examples: str) -> argparse.ArgumentParser:
        def work(options: argparse.Namespace) -> None:
            run(options, load_experiment(options))

        parser = add_command(commands, name, work, text, examples=examples, page=PAGE)
        add_experiment(parser, trains=False)
        return parser

    run = command(
        "run",
        _run,
        "ask an LLM about typical users; what the cache has is not asked again",
        "eimf label run --dataset demo --dry-run",
        "eimf label run --dataset demo llm.model=gpt-5-mini",
    )
    run.add_argument(
        "--dry-run", action="store_true", help="show three prompts, calls, tokens, cost and time; ask nothing"
    )
    run.add_argument("--retry", action="store_true", help="ask again where a reply was invalid or refused")
    preview = run.add_argument_group("expected costs, for --dry-run")
    preview.add_argument(
        "--price-in", type=float, default=0.0, metavar="X", help="price of a million tokens of prompts"
    )
    preview.add_argument(
        "--price-out", type=float, default=0.0, metavar="X", help="price of a million tokens of replies"
    )
    preview.add_argument("--seconds-each", type=float, default=3.0, metavar="S", help="seconds of a reply (default 3)")
    export = command(
        "export",
        _export,
        "write the labels as JSONL, or the open questions as an OpenAI batch file",
        "eimf label export --dataset demo --to labels.jsonl",
        "eimf label export --dataset demo --batch --to questions.jsonl llm.model=gpt-5-mini",
    )
    export.add_argument("--to", type=Path, required=True, metavar="FILE")
    export.add_argument("--batch", action="store_true", help="questions for OpenAI's Batch API instead of labels")
    importer = command(
        "import",
        _import,
        "read labels from JSONL, or the output of an OpenAI batch",
        "eimf label import --dataset demo --from labels.jsonl",
        "eimf label import --dataset demo --from output.jsonl llm.model=gpt-5-mini",
    )
    importer.add_argument("--from", dest="source", type=Path, required=True, metavar="FILE")
    command(
        "stats",
        _stats,
        "count replies, tokens and seconds",
        "eimf label stats --dataset demo",
        "eimf label stats --dataset demo eimf.labels=labels.db",
    )
    show = command(
        "show",
        _show,
        "show what the LLM said of a user",
        "eimf label show --dataset demo --user u000012",
        "eimf label show --dataset demo --user u000012 eimf.labels=labels.db",
    )
    show.add_argument("--user", required=True, metavar="USER_ID")
    command(
        "check",
        _check,
        "check the labels' quality: validity, coverage, grounding, duplicates",
        "eimf label check --dataset demo",
        "eimf label check --dataset demo eimf.labels=labels.db",
    )


def _prepared(config: "Config") -> "Prepared":
    from eimf.data.prepare import prepare

    return prepare(config.dataset, config.data.root)


def _user_vectors(config: "Config", prepared: "Prepared", spans: "Spans") -> "np.ndarray":
    """The vectors by which users are clustered: of texts, of behaviour, or both (`typical.represent`)."""
    from eimf.data.text import item_vectors
    from eimf.labels.typical import interest_vectors, side_by_side, user_vectors
    from eimf.runs.folder import load_backbone

    vectors = []
    if config.typical.represent != "behaviour":
        titles = item_vectors(prepared.items, config.text, config.data.root).vectors
        vectors.append(user_vectors(prepared.sequences, spans, titles))
    if config.typical.represent != "text":
        backbone, trained = load_backbone(Path(config.typical.run), prepared)
        if trained.split != config.split:
            raise ConfigError(
                f"typical.run: {config.typical.run} was trained on another split (split.kind={trained.split.kind}, "
                f"split.seed={trained.split.seed}), so its model has seen users or items that are held out here; "
                "name a run of this split."
            )
        vectors.append(interest_vectors(backbone, prepared.sequences, spans, trained.data.max_len))
    return side_by_side(*vectors)


def _choose(config: "Config", prepared: "Prepared", budgets: tuple[int, ...]) -> "list[Typical]":
    """Typical users of the training data for each budget."""
    from eimf.data.splits import split_sequences
    from eimf.labels.typical import coverage_by_budget

    spans, typical = split_sequences(prepared.sequences, config.split).train, config.typical
    return coverage_by_budget(
        _user_vectors(config, prepared, spans),
        spans,
        budgets,
        n_clusters=typical.clusters,
        min_history=typical.min_history,
        method=typical.method,
        seed=typical.seed,
    )


def _questions(config: "Config", prepared: "Prepared") -> "list[LabelRequest]":
    """Questions about the typical users of the training data."""
    from eimf.data.splits import split_sequences
    from eimf.labels.typical import ask_about

    if not (prepared.items["title"].str.strip_chars() != "").any():
        raise LabelError(
            f"{config.dataset.name}: none of its items has a title, so an LLM would be paid for nothing; give an items "
            "table with a column title (dataset.items)."
        )
    spans = split_sequences(prepared.sequences, config.split).train
    (chosen,) = _choose(config, prepared, (config.typical.budget_of(len(spans.user_idx)),))
    print(
        f"typical users: {len(chosen.users)} of {len(spans.user_idx):,}; mean distance of a training user to the "
        f"nearest one: {chosen.coverage:.3f}"
    )
    return ask_about(prepared, spans, chosen.users["user_idx"].to_list(), config.typical.max_items)


def _show_coverage(config: "Config", prepared: "Prepared") -> None:
    """Print the mean distance to the nearest typical user, for the budget and for smaller ones."""
    from eimf.data.splits import split_sequences

    budget = config.typical.budget_of(len(split_sequences(prepared.sequences, config.split).train.user_idx))
    budgets = tuple(sorted({max(1, budget // part) for part in (16, 8, 4, 2, 1)}))
    table = Table(title="typical users: coverage by budget", title_justify="left")
    for column in ("budget", "mean cosine distance of a training user to the nearest typical one"):
        table.add_column(column, justify="right")
    for size, chosen in zip(budgets, _choose(config, prepared, budgets), strict=True):
        table.add_row(f"{size:,}", f"{chosen.coverage:.3f}")
    Console().print(table)


def _parameters(config: "Config") -> dict[str, Any]:
    return {"temperature": config.llm.temperature, "max_tokens": config.llm.max_tokens}


def _model(config: "Config") -> str:
    """Name of the model, part of a reply's key."""
    from eimf.config.components import BACKENDS

    return BACKENDS[config.llm.backend].model_of(config.llm)


def _unanswered(
    config: "Config", requests: "list[LabelRequest]", model: str, again: "Set[str]"
) -> "list[LabelRequest]":
    """The requests to which the cache has no reply of the model."""
    from eimf.labels.cache import LabelCache
    from eimf.labels.label import request_key

    if not model or not _has_cache(config):
        return requests
    keys = [request_key(request.prompt, model, _parameters(config)) for request in requests]
    with LabelCache(config.label_cache, read_only=True) as cache:
        pending = set(cache.pending(keys, again))
    return [request for request, key in zip(requests, keys, strict=True) if key in pending]


def _run(options: argparse.Namespace, config: "Config") -> None:
    from eimf.config.components import BACKENDS
    from eimf.labels.asking import AGAIN, run
    from eimf.labels.cache import LabelCache

    again = AGAIN | ({"invalid", "refused"} if options.retry else set())
    concurrency, per_minute = getattr(config.llm, "concurrency", 1), getattr(config.llm, "per_minute", 0.0)
    if options.dry_run:
        _preview(options, config, again, concurrency, per_minute)
        return
    _model(config)  # an error about a missing name, before anything is encoded
    requests = _questions(config, _prepared(config))

    async def work(backend: "Backend") -> None:
        try:
            with LabelCache(config.label_cache) as cache:
                summary = await run(
                    requests, backend, cache, concurrency=concurrency, rate_per_minute=per_minute, again=again
                )
        finally:
            await backend.close()
        print(f"{config.label_cache}: {summary.describe()} | {summary.cached} known")
        for status, reason in summary.reasons.items():
            print(f"  {status}, for example: {reason}")
        if summary.requested > summary.cached and summary.ok + summary.elsewhere == 0:
            raise LabelError(
                f"{config.label_cache}: none of {summary.requested - summary.cached} prompts got a usable reply."
            )

    with BACKENDS[config.llm.backend].open(config.llm) as backend:
        asyncio.run(work(backend))


def _preview(
    options: argparse.Namespace, config: "Config", again: "Set[str]", concurrency: int, per_minute: float
) -> None:
    """Print what a run would ask and cost."""
    from eimf.labels.asking import preview

    prepared = _prepared(config)
    requests = _questions(config, prepared)
    _show_coverage(config, prepared)
    try:
        model = _model(config)
    except ConfigError:  # a preview needs no model
        model = ""
    unanswered = _unanswered(config, requests, model, again)
    print(
        preview(
            unanswered,
            price_in=options.price_in,
            price_out=options.price_out,
            seconds_per_call=options.seconds_each,
            concurrency=concurrency,
            rate_per_minute=per_minute,
            done=len({request.prompt for request in requests}) - len({request.prompt for request in unanswered}),
        )
    )


def _export(options: argparse.Namespace, config: "Config") -> None:
    from eimf.labels.asking import AGAIN
    from eimf.labels.backends.openai_batch import export_batch
    from eimf.labels.cache import LabelCache

    if options.batch:
        model = _model(config)
        requests = _unanswered(config, _questions(config, _prepared(config)), model, AGAIN)
        if not requests:
            raise LabelError(f"{config.label_cache}: has a reply to every question; there is nothing to export.")
        count = export_batch(options.to, requests, model=model, params=_parameters(config))
    else:
        with LabelCache(_existing(config), read_only=True) as cache:
            count = cache.export_jsonl(options.to)
    print(f"{options.to}: {count} lines")


def _import(options: argparse.Namespace, config: "Config") -> None:
    from eimf.labels.backends.openai_batch import import_batch
    from eimf.labels.cache import LabelCache

    prepared, examples = _prepared(config), {}
    if _is_batch(options.source):
        requests = _questions(config, prepared)
        with LabelCache(config.label_cache) as cache:
            batch = import_batch(options.source, cache, requests, model=_model(config), params=_parameters(config))
        rest = ("repeated", "unknown", "broken_lines", "missing")
        counted = batch.counts | {name: getattr(batch, name) for name in rest}
    else:
        with LabelCache(config.label_cache) as cache:
            report = cache.import_jsonl(options.source, set(prepared.user_ids), set(prepared.items["item_id"]))
        counted, examples = {name: value for name, value in vars(report).items() if name != "first"}, report.first
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counted.items() if count)
    print(f"{config.label_cache}: {counts}")
    for name, example in examples.items():
        print(f"  {name.replace('_', ' ')}, for example: {example}")


def _is_batch(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return any('"custom_id"' in line for line, _ in zip(file, range(20), strict=False))
    except OSError as error:
        raise LabelError(f"{path}: cannot be read ({os.strerror(error.errno or 0)}).") from None


def _has_cache(config: "Config") -> bool:
    return config.label_cache.is_file() and config.label_cache.stat().st_size > 0  # a full disk leaves empty files


def _existing(config: "Config") -> Path:
    path = config.label_cache
    if not _has_cache(config):
        raise LabelError(f"{path}: no labels yet; make some with eimf label run, or read some with eimf label import.")
    return path


def _stats(options: argparse.Namespace, config: "Config") -> None:
    from eimf.labels.cache import LabelCache

    with LabelCache(_existing(config), read_only=True) as cache:
        records = cache.records()
    table = Table(title=str(config.label_cache), title_justify="left")
    for column in ("model", "status", "replies", "tokens in", "tokens out", "seconds a reply"):
        table.add_column(column, justify="left" if column in ("model", "status") else "right")
    for model, status in sorted({(record.model, record.status) for record in records}):
        rows = [record for record in records if (record.model, record.status) == (model, status)]
        seconds = sum(record.seconds for record in rows) / len(rows)
        tokens = (sum(record.tokens_in for record in rows), sum(record.tokens_out for record in rows))
        table.add_row(Text(model), status, f"{len(rows):,}", f"{tokens[0]:,}", f"{tokens[1]:,}", f"{seconds:.2f}")
    Console().print(table)


def _show(options: argparse.Namespace, config: "Config") -> None:
    from eimf.labels.cache import LabelCache

    with LabelCache(_existing(config), read_only=True) as cache:
        records = [record for record in cache.records() if record.user_id == options.user]
    if not records:
        raise LabelError(
            f"--user: {options.user!r} has no reply in {config.label_cache}; eimf label stats counts them."
        )
    prepared, console = _prepared(config), Console()
    titles = dict(zip(prepared.items["item_id"], prepared.items["title"], strict=True))
    for record in records:
        console.print(Text(f"{record.model}, {record.status} {record.reason}".rstrip()), style="bold")
        for interest in record.interests:
            console.print(Text(interest.name))
            for number in interest.items:
                console.print(Text(f"  {number:>2}. {titles.get(record.history[number - 1], '(unknown item)')}"))


def _check(options: argparse.Namespace, config: "Config") -> None:
    from eimf.labels.cache import LabelCache
    from eimf.labels.label import newest_labels
    from eimf.labels.quality import assess_items, describe

    with LabelCache(_existing(config), read_only=True) as cache:
        labels, counts = newest_labels(cache.labels()), cache.counts()
    if not labels:
        raise LabelError(f"{config.label_cache}: holds no good reply ({counts}); nothing to check.")
    prepared = _prepared(config)
    quality = assess_items(labels, prepared.items, config.text.encoder, config.data.root)
    table = Table(title=str(config.label_cache), title_justify="left", show_header=False)
    for name, value in describe(quality, counts).items():
        table.add_row(name, value)
    Console().print(table)
