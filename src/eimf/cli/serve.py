"""Commands that use finished runs: `index`, `report`, `explore`, `recommend`."""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eimf.cli.arguments import Commands, add_command, run_folder
from eimf.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from eimf.config import Config

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
    report = add_command(
        commands,
        "report",
        _report,
        "write one HTML page about a run or a suite",
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
    explore.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    explore.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="HOST",
        help="a name by which browsers address it; may be repeated",
    )
    explore.add_argument("--port", type=int, default=8411, help="default 8411; 0 takes any free one")
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
    who = recommend.add_mutually_exclusive_group(required=True)
    who.add_argument("--history", metavar="ID,ID,...", help="item ids, oldest first")
    who.add_argument("--user", metavar="USER_ID", help="a user of the data set; the user's whole history is used")
    recommend.add_argument("-n", type=int, default=10, help="length of the lists (default 10)")
    recommend.add_argument("--diversity", type=float, default=0.0, help="weight of category diversity (default 0)")
    recommend.add_argument("--include-seen", action="store_true", help="items of the history may be recommended")


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


def _explore(options: argparse.Namespace) -> None:
    from eimf.explorer import open_runs, serve

    serve(open_runs(options.run_folders), options.host, options.port, options.open, options.name)


def _recommend(options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from eimf.serving.recommender import load

    if options.n < 1:
        raise ConfigError(f"-n: must be at least 1, is {options.n}.")
    model = load(options.run_folder)
    if options.user is not None:
        history = _history_of(options.user, options.run_folder, model.config)
    else:
        history = [part.strip() for part in options.history.split(",") if part.strip()]
    keep: dict[str, Any] = {"filter_seen": False if options.include_seen else None}
    lists = model.recommend_by_interest(history, options.n, **keep) if model.n_interests > 1 else []
    merged = model.recommend(history, options.n, diversity=options.diversity, **keep)
    table = Table(title=f"history ({len(history)} items, oldest first)", title_justify="left")
    table.add_column("item")
    table.add_column("title")
    for item in history[-model.config.data.max_len :]:
        table.add_row(Text(item), Text(model.title(item) or "(no title)"))
    console = Console()
    console.print(table)
    for name, ranked in [(f"interest {k}", items) for k, items in enumerate(lists)] + [("merged", merged)]:
        table = Table(title=name, title_justify="left")
        for column in ("item", "title", "score", "interest"):
            table.add_column(column, justify="right" if column in ("score", "interest") else "left")
        for each in ranked:
            table.add_row(Text(each.item_id), Text(each.title or "(no title)"), f"{each.score:.3f}", str(each.interest))
        console.print(table)


def _history_of(user_id: str, run: Path, config: "Config") -> list[str]:
    from eimf.data.prepare import prepare
    from eimf.runs.folder import ORIGIN, check_data, read_checkpoint

    checkpoint = read_checkpoint(run)
    prepared = prepare(config.dataset, config.data.root, checkpoint[ORIGIN]["data_digest"])
    check_data(checkpoint, prepared, run)
    row = prepared.user_ids.index_of(user_id)
    if row is None:
        raise DataError(
            f"--user: {user_id!r} is not among the {len(prepared.user_ids)} users of {config.dataset.name} "
            f"(ids look like {', '.join(map(repr, prepared.user_ids.head(3)))}); use --history for a new user."
        )
    sequences = prepared.sequences
    items = sequences.items[sequences.offsets[row] : sequences.offsets[row + 1]]
    return prepared.items["item_id"].gather(items - 1).to_list()
