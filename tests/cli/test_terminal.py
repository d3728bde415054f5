"""What the command line says: help, hints, progress, what to do next."""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from tqdm import tqdm

from eimf.cli.main import build_parser, main
from eimf.cli.tables import print_table
from eimf.data.prepared import Prepared
from eimf.runs.versions import newest_version
from eimf.training.callbacks import Curves
from eimf.training.callbacks.progress import BAR
from tests.conftest import ROOT, TINY


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


PARSERS = {parser.prog: parser for parser in parsers(build_parser())}


@pytest.mark.parametrize("name", PARSERS)
def test_help_says_what_it_is_for_with_two_examples_and_a_page(name: str) -> None:
    parser = PARSERS[name]
    assert parser.description
    assert parser.epilog is not None
    examples = [line.strip() for line in parser.epilog.splitlines() if line.startswith("  ")]
    assert len(examples) == 2
    for example in examples:
        assert example.startswith("eimf")
        if not example.endswith("--help"):
            build_parser().parse_known_args(example.split()[1:])
    page = parser.epilog.rpartition("read more: ")[2]
    assert (ROOT / page).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["train", "optim.lr=fast"], ["config", "a=1"]])
def test_help_and_plain_errors_load_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom eimf.cli.main import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print(*sorted({'pytorch_lightning', 'torchmetrics'} & set(sys.modules)), file=sys.stderr)\n"
        "if sys.argv[1:] != ['config', 'a=1']: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == ""


@pytest.mark.slow
def test_serving_loads_neither_lightning_nor_torchmetrics() -> None:
    code = (
        "import sys, eimf.serving.recommender\n"
        "print(*sorted({'pytorch_lightning', 'torchmetrics', 'matplotlib', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("max_epochs=2", "did you mean trainer.max_epochs?"),
        ("n_interests=4", "did you mean backbone.n_interests?"),
        ("lr=0.1", "did you mean optim.lr?"),
        ("epochs=3", "did you mean trainer.max_epochs?"),
        ("embedding_size=32", "did you mean backbone.embed_dim?"),
        ("optim.max_epochs=2", "did you mean trainer.max_epochs?"),
        ("trainer.max_epoch=2", "did you mean 'max_epochs'?"),
        ("optim.lr=fast", "optim.lr: must be a number, is 'fast'."),
        ("optim.lr=", "optim.lr: must be a number, is empty."),
        ("trainer.max_epochs=2.5", "trainer.max_epochs: must be a whole number, is 2.5."),
        ("trainer.progress=maybe", "trainer.progress: must be true or false, is 'maybe'."),
        ("split.kind=foo", "split.kind: must be one of user, loo, time, is 'foo'."),
        ("eval.cutoffs=x", "eval.cutoffs: must be a list of whole numbers, such as [10, 20], is 'x'."),
        (
            "eval.diversity_lambdas=[a]",
            "eval.diversity_lambdas: must be a list of numbers, such as [0.1, 0.2], is ['a'].",
        ),
    ],
)
def test_a_wrong_setting_gets_a_hint(setting: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", setting]) == 2
    assert said in capsys.readouterr().err


def test_other_hints(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for given in (["--seed", "4"], ["--seed=4"]):
        with pytest.raises(SystemExit):
            main(["train", *given])
        assert "did you mean seed=4?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--epochs", "3"])
    assert "did you mean trainer.max_epochs=3?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--dry-run"])
    assert "did you mean" not in capsys.readouterr().err  # there is no such setting
    assert main(["compare", "backbone"]) == 2
    assert "no such suite (did you mean 'backbones'?)" in capsys.readouterr().err
    given = [*TINY, f"data.root={tmp_path}/data", f"logger.root={tmp_path}/logs", f"eimf.labels={tmp_path}/none.db"]
    assert main(["train", "--eimf", *given]) == 2
    assert "none.db: no labels yet (no such file). Make some with eimf label run" in capsys.readouterr().err
    assert not (tmp_path / "logs").exists()
    assert not (tmp_path / "data").exists()  # said before anything is prepared


@pytest.mark.slow
def test_a_training_run_says_a_line_an_epoch_and_what_to_try(
    data_root: Path, tiny: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = tmp_path / "my logs"
    for extra in (["trainer.progress=true"], []):  # the output is no terminal in both
        settings = [*TINY, *extra, "trainer.max_epochs=2", f"data.root={data_root}", f"logger.root={logs}"]
        assert main(["train", *settings]) == 0
        said = capsys.readouterr()
        assert "\r" not in said.out + said.err
        lines = [line for line in said.out.splitlines() if line.startswith("epoch ")]
        assert [line.partition(":")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
        assert all("loss " in line and "recall@50 " in line for line in lines)
        assert "best epoch " in said.out
    experiment = logs / "demo-comirec_sa"
    assert f"eimf recommend '{experiment}/version_1' --user=" in said.out
    assert newest_version(experiment) == experiment / "version_1"
    assert newest_version(experiment / "version_0") == experiment / "version_0"
    for command in (["evaluate", str(experiment)], ["recommend", str(experiment), "--user", tiny.user_ids[0]]):
        assert main(command) == 0


@pytest.mark.slow
def test_an_interrupted_run_names_its_folder(
    data_root: Path, tiny: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*TINY, f"data.root={data_root}", f"logger.root={tmp_path}/my logs"]
    write = Curves.on_train_epoch_end
    for epoch in (0, 1):

        def interrupt(self: Curves, trainer: object, module: object, epoch: int = epoch) -> None:
            write(self, trainer, module)  # pyright: ignore[reportArgumentType]
            if trainer.current_epoch == epoch:  # pyright: ignore[reportAttributeAccessIssue]
                raise KeyboardInterrupt

        monkeypatch.setattr(Curves, "on_train_epoch_start" if epoch == 0 else "on_train_epoch_end", interrupt)
        assert main(["train", *settings]) == 130
        error = capsys.readouterr().err
        monkeypatch.undo()
        monkeypatch.chdir(ROOT)
        if epoch == 0:
            assert error == "eimf: interrupted; there is no checkpoint yet, so start again\n"
            assert not list(tmp_path.rglob("version_*"))
    folder = tmp_path / "my logs" / "demo-comirec_sa" / "version_0"
    assert error == f"eimf: interrupted; continue with eimf train --resume '{folder}'\n"
    assert main(["train", "--resume", str(folder.parent)]) == 0


def test_a_narrow_terminal_keeps_loss_and_metric() -> None:
    values = "loss 7.3159, recall@50 0.2873, "
    line = tqdm.format_meter(
        63, 100, 7.0, ncols=60, prefix="epoch 12/30", bar_format=BAR.replace("{postfix[0]}", values)
    )
    assert len(line) <= 60
    assert "loss 7.3159, recall@50 0.2873" in line


@pytest.mark.parametrize("width", [40, 60, 72, 73, 76, 80, 84, 100, 200])
def test_tables_do_not_break_words(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    columns = ("users", "items", "interactions", "mean length", "median", "density", "last two tied")
    print_table(Console(width=width), "shop", columns, [("1", "123,456", "36,165", "4.5", "5", "6.123%", "7%")], left=0)
    print_table(Console(width=width), "points", ("lambda", "diversity@20"), [("0", "0.4")] * 9)
    said = capsys.readouterr().out
    for word in ("interactions", "density", "median", "36,165", "123,456", "6.123%", "lambda", "diversity@20"):
        assert word in said
    assert max(map(len, said.splitlines())) <= width


@pytest.mark.slow
def test_tensorboard_gets_the_curves(data_root: Path, tiny: Prepared, tmp_path: Path) -> None:
    accumulate = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    settings = [*TINY, f"data.root={data_root}", f"logger.root={tmp_path}", "logger.tensorboard=true"]
    assert main(["train", *settings]) == 0
    (folder,) = tmp_path.rglob("tensorboard")
    events = accumulate(str(folder))
    events.Reload()
    assert {"train/loss", "val/recall@50"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("val/recall@50")) >= 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "eimf: COMMAND: 'trian': no such choice (did you mean 'train'?)"),
        (["label", "rnu"], "(did you mean 'run'?); choose one of run, export"),
        (["recommend", "RUN", "--merge", "bets"], "--merge: 'bets': no such choice (did you mean 'best'?)"),
        (["recommend"], "the following arguments are required: RUN (help: eimf recommend --help)"),
    ],
)
def test_a_mistyped_command_is_one_line_with_a_hint(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert said in error
    assert error.count("\n") == 1


def test_a_mistyped_suite_gets_a_hint_at_a_file_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "two.yaml").write_text("variants: {a: {}}")
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "tow.yaml"]) == 2
    assert "(did you mean 'two.yaml'?)" in capsys.readouterr().err
