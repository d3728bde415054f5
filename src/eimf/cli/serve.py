"""Commands that use finished runs: `index`, `report`, `explore`, `recommend`,
`predict`, `serve`, `export`, `similar`."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from eimf.cli.arguments import Commands, add_command, add_list_options, add_tables, list_options, run_folder
from eimf.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rich.console import Console

    from eimf.config import Config
    from eimf.data.prepared import Prepared
    from eimf.serving.recommender import Recommendation, Recommender

log = logging.getLogger(__name__)


def add_commands(commands: Commands) -> None:
    """Add the commands of this file."""
    index = add_command(
        commands,
        "index",
        _index,
        "keep a retrieval index in a run folder, for serving a large catalogue",
        examples=(
            "eimf index lightning_logs/demo-comirec_sa",
            "eimf index lightning_logs/demo-comirec_sa eval.index=ivf",
        ),
        page="howto/serve.md",
    )
    index.add_argument("run_folder", metavar="RUN", type=run_folder)
    index.add_argument(
        "overrides", nargs="*", metavar="key=value", help="eval.index=hnsw (default), ivf, IVF4096,PQ16, ..."
    )
    text_map = add_command(
        commands,
        "map",
        _map,
        "fit a run's text map, for interests in words and for new items by title",
        examples=(
            "eimf map lightning_logs/demo-comirec_sa",
            "eimf map lightning_logs/demo-comirec_sa text.vectors=my_vectors.parquet",
        ),
        page="howto/words.md",
    )
    text_map.add_argument("run_folder", metavar="RUN", type=run_folder)
    text_map.add_argument(
        "overrides", nargs="*", metavar="key=value", help="text.encoder=NAME, text.vectors=FILE, data.root=FOLDER"
    )
    report = add_command(
        commands,
        "report",
        _report,
        "write one HTML page about a run, a suite or a sweep",
        examples=(
            "eimf report lightning_logs/demo-comirec_sa",
            "eimf report lightning_logs/demo-backbones --to page.html",
        ),
        page="tutorial.md",
    )
    report.add_argument("folder", metavar="RUN|SUITE_FOLDER", type=run_folder)
    report.add_argument("--to", metavar="FILE", type=Path, help="the page (default: report.html in the folder)")
    explore = add_command(
        commands,
        "explore",
        _explore,
        "look into runs in a browser: interests, their items, diversity",
        examples=(
            "eimf explore lightning_logs/demo-comirec_sa --open",
            "eimf explore lightning_logs/demo-comirec_sa lightning_logs/demo-mind",
        ),
        page="tutorial.md",
    )
    explore.add_argument(
        "run_folders", metavar="RUN", type=run_folder, nargs="+", help="two or more are shown side by side"
    )
    _add_address(explore, port=8411)
    explore.add_argument("--open", action="store_true", help="open the page in the browser")
    recommend = add_command(
        commands,
        "recommend",
        _recommend,
        "recommend for a user or a history, interest by interest",
        examples=(
            "eimf recommend lightning_logs/demo-comirec_sa --user u000000",
            "eimf recommend lightning_logs/demo-comirec_sa --history P00017,P00342 -n 5",
        ),
        page="howto/serve.md",
    )
    recommend.add_argument("run_folder", metavar="RUN", type=run_folder)
    who = recommend.add_mutually_exclusive_group()
    who.add_argument("--history", metavar="ID,ID,...", help="item ids, oldest first")
    who.add_argument("--user", metavar="USER_ID", help="a user of the data set; the user's whole history is used")
    recommend.add_argument(
        "--words",
        action="append",
        default=[],
        metavar="PHRASE",
        help="one more interest, in words; may be repeated, and stand without a history (needs eimf map)",
    )
    add_list_options(recommend, n=10)
    predict = add_command(
        commands,
        "predict",
        _predict,
        "recommend for many users into a file; run it again to continue after a kill",
        examples=(
            "eimf predict lightning_logs/demo-comirec_sa --to lists.parquet",
            "eimf predict lightning_logs/demo-comirec_sa --histories mine.csv --to lists.csv",
        ),
        page="howto/serve.md",
    )
    predict.add_argument("run_folder", metavar="RUN", type=run_folder)
    predict.add_argument("--to", metavar="FILE", type=Path, required=True, help="FILE.parquet, .csv or .jsonl")
    whom = predict.add_mutually_exclusive_group()
    whom.add_argument(
        "--users", metavar="FILE", type=Path, help="user ids, one a line, or a column user_id (default: all users)"
    )
    whom.add_argument(
        "--histories",
        metavar="FILE",
        type=Path,
        help="histories of your own: CSV, Parquet or JSON lines with user_id and history, or user_id and item_id",
    )
    predict.add_argument("--by-interest", action="store_true", help="a list for each interest")
    add_list_options(predict, n=50)
    serve = add_command(
        commands,
        "serve",
        _serve,
        "recommend over HTTP; SIGHUP loads the run folder again, without losing a request",
        examples=(
            "eimf serve lightning_logs/demo-comirec_sa",
            "eimf serve lightning_logs/demo-comirec_sa --host 0.0.0.0 --name shop.example --port 8080",
        ),
        page="howto/serve.md",
    )
    serve.add_argument("run_folder", metavar="RUN", type=Path)  # each reload takes the newest version
    _add_address(serve, port=8412)
    add_tables(serve)
    export = add_command(
        commands,
        "export",
        _export,
        "write item vectors with their ids, and the backbone for torch.export and ONNX",
        examples=(
            "eimf export lightning_logs/demo-comirec_sa --to exported",
            "eimf export lightning_logs/demo-comirec_sa --to exported --no-onnx --columns stock.csv",
        ),
        page="howto/export.md",
    )
    export.add_argument("run_folder", metavar="RUN", type=run_folder)
    export.add_argument("--to", metavar="FOLDER", type=Path, required=True, help="a new folder")
    export.add_argument("--no-onnx", action="store_true", help="without ONNX, which needs the extra packages [export]")
    export.add_argument("--no-program", action="store_true", help="without the program of torch.export")
    add_tables(export)
    similar = add_command(
        commands,
        "similar",
        _similar,
        "items that are similar to an item, by their vectors",
        examples=(
            "eimf similar lightning_logs/demo-comirec_sa P00017",
            "eimf similar lightning_logs/demo-comirec_sa P00017 -n 5",
        ),
        page="howto/serve.md",
    )
    similar.add_argument("run_folder", metavar="RUN", type=run_folder)
    similar.add_argument("item_id", metavar="ITEM_ID")
    add_list_options(similar, n=10, of_histories=False)


def _add_address(parser: argparse.ArgumentParser, port: int) -> None:
    """Add the arguments of a web server."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="HOST",
        help="a host name by which clients address it; may be repeated",
    )
    parser.add_argument("--port", type=int, default=port, help=f"default {port}; 0 takes any free one")


def _report(options: argparse.Namespace) -> None:
    from eimf.report import build_report

    log.info(f"written: {build_report(options.folder, options.to)}")


def _index(options: argparse.Namespace) -> None:
    import torch

    from eimf.config.load import load
    from eimf.runs.folder import INDEX, read_checkpoint, restore_backbone, save_index

    backbone, _ = restore_backbone(read_checkpoint(options.run_folder), options.run_folder)
    if wrong := [text for text in options.overrides if not text.startswith("eval.")]:
        raise ConfigError(f"{wrong[0]!r}: only eval.* settings matter to an index.")
    config = load(options.run_folder / "config.yaml", ["eval.index=hnsw", *options.overrides])
    with torch.inference_mode():
        vectors = backbone.item_vectors().float().cpu().numpy()
    save_index(options.run_folder, vectors, config.eval.index, config.eval.search)
    path = options.run_folder / INDEX
    log.info(
        f"written: {path} ({config.eval.index}, {path.stat().st_size / 2**20:.1f} MiB); eimf recommend uses it now"
    )


def _map(options: argparse.Namespace) -> None:
    from eimf.runs.folder import TEXT_MAP
    from eimf.runs.text_map import make_text_map

    made = make_text_map(options.run_folder, options.overrides).fit
    log.info(
        f"written: {options.run_folder / TEXT_MAP} (fitted on {made.items:,} items, strength {made.strength:g}; "
        f"explains {made.explained:.1%} of the variance of held-out item vectors)"
    )
    log.info(f'try:     eimf recommend {options.run_folder} --words "a few words"')


def _explore(options: argparse.Namespace) -> None:
    from eimf.explorer import open_runs, serve

    serve(open_runs(options.run_folders), options.host, options.port, options.open, options.name)


def _recommend(options: argparse.Namespace) -> None:
    from rich.console import Console

    if options.user is None and options.history is None and not options.words:
        raise ConfigError("eimf recommend: needs a user; give --history, --user or --words.")
    model = _load(options)
    wanted = replace(list_options(options, model), words=options.words)
    if options.user is not None:
        history = _history_of(options.user, options.run_folder, model.config)
    else:
        history = [part.strip() for part in (options.history or "").split(",") if part.strip()]
    merged = model.answer([history], wanted)[0][0]
    lists = []
    if model.n_interests + len(wanted.words) > 1 and not merged.fallback:
        lists = model.answer([history], replace(wanted, by_interest=True, merge="best", diversity=0.0))[0]
    console = Console()
    known = [item for item in history if model.knows(item)]
    _print_items(
        console,
        f"history ({len(known)} items, oldest first)",
        ("item", "title"),
        [(item, model.title(item)) for item in known[-model.config.data.max_len :]],
    )
    if merged.skipped:
        console.print(
            f"{merged.skipped} items of the history are not in the catalogue and were skipped", soft_wrap=True
        )
    if merged.fallback:
        console.print("no known item in the history: these are popular items of the training data", soft_wrap=True)
    count = model.n_interests
    own = model.interest_names or [""] * count
    names = [
        *(f"interest {k}: {one}" if one else f"interest {k}" for k, one in enumerate(own)),
        *(f"interest {k}: {one}" for k, one in enumerate(wanted.words, count)),
    ]
    named = zip(
        names[len(names) - len(lists) :], lists, strict=True
    )  # without a history, there are those of words only
    for name, ranked in [*named, ("merged", merged)]:
        rows = [(one.item_id, one.title, f"{one.score:.3f}", _interest(one)) for one in ranked]
        _print_items(console, name, ("item", "title", "score", "interest"), rows)


def _predict(options: argparse.Namespace) -> None:
    from eimf.serving.histories import FileHistories, PreparedHistories, read_user_ids
    from eimf.serving.prediction import predict

    model = _load(options)
    wanted = list_options(options, model, options.by_interest)
    if options.histories is not None:
        histories = FileHistories(options.histories, model.items)
    else:
        ids = read_user_ids(options.users) if options.users is not None else None
        histories = PreparedHistories(_prepared_of(options.run_folder, model.config), ids)
    if histories.unknown:
        data = f"{histories.unknown:,} users of {options.users} are not in the data of {model.config.dataset.name}"
        if wanted.unknown == "error":
            raise DataError(f"--users: {data}; leave them out, or give their --histories.")
        log.info(f"{data}; they get popular items")
    done = predict(model, histories, options.to, wanted)
    log.info(f"written: {done.path} ({done.rows:,} rows for {done.users:,} users)")
    if done.skipped:
        log.info(f"  {done.skipped:,} items of the histories are not in the catalogue and were skipped")
    if done.users and not done.rows:
        log.warning("  no item may be listed: see --allow, --deny and --filter-seen")
    if done.fallbacks:
        log.info(f"  {done.fallbacks:,} users have no known item and got popular items (their interest is null)")


def _serve(options: argparse.Namespace) -> None:
    from eimf.core.signals import noting

    with noting("SIGHUP"):  # before the run is loaded, there is nothing to load again
        from eimf.serving.http import serve

        serve(
            options.run_folder,
            options.host,
            options.port,
            columns=options.columns,
            items=options.items,
            names=options.name,
        )


def _export(options: argparse.Namespace) -> None:
    from eimf.serving.export import export

    model = _load(options)
    log.info(f"written: {export(model, options.to, not options.no_onnx, not options.no_program)}")


def _similar(options: argparse.Namespace) -> None:
    from rich.console import Console

    model = _load(options)
    wanted = list_options(options, model)
    found = model.similar_items(options.item_id, wanted.n, allow=wanted.allow, deny=wanted.deny)
    title = f"similar to {options.item_id} ({model.title(options.item_id) or 'no title'})"
    rows = [(one.item_id, one.title, f"{one.score:.3f}") for one in found]
    _print_items(Console(), title, ("item", "title", "cosine"), rows)


def _load(options: argparse.Namespace) -> "Recommender":
    from eimf.serving.new_items import load_with_tables

    return load_with_tables(options.run_folder, options.columns, options.items)


def _interest(item: "Recommendation") -> str:
    return "popular" if item.interest is None else str(item.interest)


def _print_items(console: "Console", title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table of items; titles are plain text."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in ("item", "title") else "right")
    for item, name, *values in rows:
        table.add_row(Text(item), Text(name or "(no title)"), *values)
    console.print(table)


def _history_of(user_id: str, run: Path, config: "Config") -> list[str]:
    prepared = _prepared_of(run, config)
    row = prepared.user_ids.index_of(user_id)
    if row is None:
        raise DataError(
            f"--user: {user_id!r} is not among the {len(prepared.user_ids)} users of {config.dataset.name} "
            f"(ids look like {', '.join(map(repr, prepared.user_ids.head(3)))}); use --history for a new user."
        )
    sequences = prepared.sequences
    items = sequences.items[sequences.offsets[row] : sequences.offsets[row + 1]]
    return prepared.items["item_id"].gather(items - 1).to_list()


def _prepared_of(run: Path, config: "Config") -> "Prepared":
    """The prepared data of a run."""
    from eimf.data.prepare import prepare
    from eimf.runs.folder import ORIGIN, check_data, read_checkpoint

    checkpoint = read_checkpoint(run)
    prepared = prepare(config.dataset, config.data.root, checkpoint[ORIGIN]["data_digest"])
    check_data(checkpoint, prepared, run)
    return prepared
