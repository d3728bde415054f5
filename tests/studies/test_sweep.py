"""Sweep files, their distributions, the search, early termination, and how values reach `eimf train`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from eimf.cli.main import main
from eimf.cli.train import load_train
from eimf.config.load import load
from eimf.core.errors import ConfigError
from eimf.studies.local_sweep import FINISHED, Trial, propose
from eimf.studies.sweep import Hyperband, Parameter, arguments_of, read_sweep

SWEEP: dict[str, Any] = {
    "method": "random",
    "metric": {"name": "val/recall@50", "goal": "maximize"},
    "run_cap": 3,
    "parameters": {"optim.lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2}},
    "command": ["${env}", "${interpreter}", "-m", "eimf", "train", "eval.test=false", "${args_no_hyphens}"],
}


def write(path: Path, **changes: Any) -> Path:
    values = {key: value for key, value in {**SWEEP, **changes}.items() if value is not None}
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.slow
def test_the_ready_sweeps_load() -> None:
    found = [read_sweep(path, [], load_train) for path in sorted(Path("experiments/sweeps").glob("*.yaml"))]
    assert {one.method for one in found} == {"grid", "random", "bayes"}
    assert any(one.hyperband for one in found)
    assert all(not one.config.eval.test for one in found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "random_search"}, r"method: 'random_search' is not known"),
        ({"metric": None}, "metric.name: None is no metric"),
        ({"metric": {"name": "val/recal@50", "goal": "maximize"}}, "did you mean 'val/recall@50'"),
        ({"metric": {"name": "final/test/recall@50", "goal": "maximize"}}, "no metric of validation users"),
        ({"metric": {"name": "val/recall@50"}}, "must be maximize"),
        ({"command": ["python", "other.py", "${args_no_hyphens}"]}, "must be a list that calls `eimf train`"),
        ({"command": None}, "must be a list that calls `eimf train`"),
        ({"command": ["eimf", "train", "${args_no_hyphens}"]}, "must hold eval.test=false"),
        ({"parameters": {"optim.lrr": {"value": 1}}}, "did you mean 'lr'"),
        ({"parameters": {"optim.lr": {"values": [0.1, -1.0]}}}, "must be at least"),
        ({"parameters": {"experiment": {"values": ["a", "${oc.env:HOME}"]}}}, r"experiment: holds \$\{\.\.\.\}"),
        ({"parameters": {"loss.ihn_beta": {"values": [1.0, 2.0]}}}, r"loss\.ihn_beta: no such key"),
        ({"parameters": {"optim.lr": {"min": 0, "max": 1.0}}}, "two whole numbers or two decimal"),
        ({"parameters": {"optim.lr": {"distribution": "beta", "a": 1}}}, "'beta' is not supported"),
        ({"parameters": {"optim.lr": {"distribution": "uniform", "min": 0.1}}}, "max: is missing"),
        ({"parameters": {"optim.lr": {"values": [0.1], "step": 1}}}, "step: no such key"),
        ({"parameters": {"optim.lr": {"values": [0.1], "probabilities": [0.5]}}}, "with sum 1"),
        ({"parameters": {"optim.lr": 0.1}}, "must be a group"),
        ({"parameters": {}}, "must map settings"),
        ({"method": "grid"}, "a grid cannot count"),
        ({"early_terminate": {"type": "median"}}, "must be {type: hyperband"),
        ({"early_terminate": {"type": "hyperband"}}, "give min_iter"),
        ({"run_cap": 0}, "run_cap: must be a whole number"),
        ({"colour": "red"}, "colour: no such key"),
    ],
)
@pytest.mark.slow
def test_bad_sweeps_are_one_line(
    tmp_path: Path, change: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "s.yaml", **change)
    with pytest.raises(ConfigError, match=message):
        read_sweep(file, [], load_train)
    assert main(["sweep", str(file), "--offline"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiments/sweeps/demo_smal.yaml"], "did you mean 'experiments/sweeps/demo_small.yaml'"),
        ([], "give a sweep file, or --join"),
        (["experiments/sweeps/demo_small.yaml", "--offline", "--workers", "0"], "--workers: must be at least 1"),
    ],
)
def test_bad_commands(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_bad_yaml(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("method: [grid")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_sweep(tmp_path / "s.yaml", [], load_train)


def test_distributions() -> None:
    shares = np.linspace(0, 1, 1001)

    def draw(kind: str, **keys: Any) -> np.ndarray:
        return np.array([Parameter(("x",), kind, **keys).at(u) for u in shares])

    assert set(draw("int_uniform", low=2, high=5)) == {2, 3, 4, 5}
    assert np.median(draw("log_uniform_values", low=1e-4, high=1e-2)) == pytest.approx(1e-3)
    assert draw("uniform", low=-1.0, high=3.0).mean() == pytest.approx(1.0)
    assert sorted(set(draw("q_uniform", low=0.0, high=0.3, q=0.1))) == [0.0, 0.1, 0.2, 0.3]
    normal = draw("normal", mu=5.0, sigma=2.0)[1:-1]
    assert (normal.mean(), normal.std()) == (pytest.approx(5.0), pytest.approx(2.0, rel=0.01))
    assert (draw("categorical", values=("a", "b"), shares=(0.9, 0.1)) == "a").mean() == pytest.approx(0.9, abs=0.002)


def test_random_search_is_seeded_by_trial(tmp_path: Path) -> None:
    sweep = read_sweep(write(tmp_path / "s.yaml"), [], load_train)
    first = [propose(sweep, number, [], 0) for number in range(4)]
    assert first == [propose(sweep, number, [], 0) for number in range(4)]
    assert len({point[0] for point in first}) == 4
    assert first != [propose(sweep, number, [], 1) for number in range(4)]


def test_bayes_learns_where_it_is_good(tmp_path: Path) -> None:
    parameters = {"optim.lr": SWEEP["parameters"]["optim.lr"], "optim.name": {"values": ["adam", "adamw"]}}
    sweep = read_sweep(write(tmp_path / "s.yaml", method="bayes", parameters=parameters), [], load_train)
    trials: list[Trial] = []
    for number in range(40):
        point = propose(sweep, number, trials, 0)
        value = -((point[0] - 0.7) ** 2) - 0.1 * (point[1] > 0.5)
        trials.append(Trial(number, point, [], FINISHED, value))
    late = np.array([one.point for one in trials[25:]])
    assert np.abs(late[:, 0] - 0.7).mean() < 0.15
    assert (late[:, 1] < 0.5).mean() > 0.6


def test_hyperband_stops_as_wandb_does() -> None:
    """The example in the docstring of W&B's `sweeps.hyperband_stop_runs` (Apache-2.0)."""
    losses = {"a": [10, 9], "b": [10, 10], "c": [10, 8, 8], "d": [10, 7, 7], "e": [10, 6, 6]}
    found = Hyperband(bands=(1, 2), eta=2)
    stopped = [name for name in "bcd" if found.stops(losses[name], list(losses.values()))]
    assert stopped == ["b"]
    assert not found.stops([], [])
    assert Hyperband((2,), 3, strict=True).stops([1.0, 5.0], [[1.0, 5.0], [3.0, 2.0], [3.0, 3.0]])


@pytest.mark.slow
def test_values_reach_train_as_the_agent_of_wandb_writes_them() -> None:
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    values = {
        "optim.lr": 1e-05,
        "eval.test": False,
        "experiment": "two words = one argument",
        "loss.readout_power": float("inf"),
        "eval.cutoffs": [5, 50],
        "eval.diversity_lambdas": [0.0, 1e-05],
        "trainer": {"max_epochs": 2, "gradient_clip": 1e-07, "progress": True},
        "text": None,
    }
    rendered = create_sweep_command_args({"args": {key: {"value": value} for key, value in values.items()}})
    parameters = [Parameter((key,), "constant") for key in values]
    assert arguments_of(parameters, list(values.values())) == rendered["args_no_hyphens"]
    nested = [Parameter(("trainer", "max_epochs"), "constant"), Parameter(("trainer", "progress"), "constant")]
    assert arguments_of(nested, [2, False]) == ["trainer={'max_epochs': 2, 'progress': False}"]
    config = load(None, rendered["args_no_hyphens"])
    assert config.optim.lr == 1e-05
    assert config.eval.test is False
    assert config.experiment == values["experiment"]
    assert config.loss.readout_power == float("inf")
    assert list(config.eval.cutoffs) == [5, 50]
    assert list(config.eval.diversity_lambdas) == [0.0, 1e-05]
    assert (config.trainer.max_epochs, config.trainer.gradient_clip, config.trainer.progress) == (2, 1e-07, True)
