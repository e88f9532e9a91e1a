from collections.abc import Sequence
from pathlib import Path

import pytest
from _cli import CONFIGS
from _run_spec import read
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from rad import data, models
from rad.errors import UsageError
from rad.planning.variants import variants

TRAIN = CONFIGS / "train"
PAPER = {
    "baseline": (0.001350, 4.066478e-07),
    "reduced_batch": (0.000645, 5.687505e-05),
    "same_sample": (0.000452, 4.058855e-06),
    "different_sample": (0.000934, 1.254031e-06),
    "project": (0.000527, 1.009799e-03),
}


def names(group: str) -> list[str]:
    return sorted(file.stem for file in (TRAIN / group).glob("*.yaml"))


def composed(*overrides: str, root: Path = TRAIN, name: str = "train") -> DictConfig:
    with initialize_config_dir(str(root), version_base="1.3"):
        return compose(name, overrides=list(overrides))


def path(*overrides: str) -> str:
    return str(read(composed(*overrides), overrides).path)


def test_groups_hold_what_the_package_knows() -> None:
    assert set(names("variant")) == set(variants())
    assert set(names("model")) <= set(models.MODELS)
    assert set(names("dataset")) <= set(data.NAMES)


def test_no_folder_hides_a_setting() -> None:
    """`key=value` of the command line means a folder of that name, where there is one."""
    groups = {"model", "dataset", "variant", "optimizer", "logger"}
    folders = {path.name for path in TRAIN.iterdir() if path.is_dir()}
    for name in ("train", "tune", "gradient_noise"):
        assert not folders & set(composed(name=name)) - groups, name
    settings = read(composed("allocation=optimal", "kind=peak"), []).config
    assert (settings.allocation, settings.kind) == ("optimal", "peak")


@pytest.mark.parametrize("group", ["variant", "model", "dataset", "optimizer", "logger"])
def test_a_file_and_its_name_agree(group: str) -> None:
    for name in names(group):
        assert composed(f"{group}={name}")[group].name == name


PAIRS = [
    *(("digits", variant) for variant in names("variant")),
    *((dataset, "auto") for dataset in names("dataset")),
]


@pytest.mark.parametrize(("dataset", "variant"), PAIRS)
@pytest.mark.parametrize("optimizer", names("optimizer"))
def test_every_choice_composes(dataset: str, variant: str, optimizer: str) -> None:
    model = "gpt" if dataset == "python_sources" else "feedforward"
    groups = {"model": model, "dataset": dataset, "variant": variant, "optimizer": optimizer}
    overrides = [f"{group}={name}" for group, name in groups.items()]
    spec = read(composed(*overrides), overrides)
    assert spec.settings.optimizer == optimizer
    assert spec.settings.batch_size == 150
    assert not OmegaConf.missing_keys(spec.config)


@pytest.mark.parametrize("experiment", names("experiment"))
@pytest.mark.parametrize("variant", ["baseline", "different_sample", "auto"])
def test_every_experiment_composes(experiment: str, variant: str) -> None:
    overrides = [f"+experiment={experiment}", f"variant={variant}"]
    spec = read(composed(*overrides), overrides)
    assert spec.experiment == experiment
    budget = "full" if variant == "baseline" else spec.budget
    assert str(spec.path) == f"results/{experiment}/{variant}/budget={budget}/seed=0"


@pytest.mark.parametrize(("variant", "values"), PAPER.items())
def test_mnist_has_the_papers_hyperparameters(variant: str, values: Sequence[float]) -> None:
    overrides = ["dataset=mnist", f"variant={variant}"]
    settings = read(composed(*overrides), overrides).settings
    assert (settings.learning_rate, settings.weight_decay) == tuple(values)
    assert settings.iterations == 20_000
    assert settings.learning_rate_at(1999) == values[0]
    assert settings.learning_rate_at(4000) == pytest.approx(values[0] * 0.36)


def test_digits_is_tuned_for_no_variant() -> None:
    rates = set()
    for variant in variants():
        settings = read(composed("dataset=digits", f"variant={variant}"), []).settings
        rates.add((settings.learning_rate, settings.weight_decay, settings.decay_every))
    assert rates == {(1e-3, 0.0, None)}


@pytest.mark.parametrize(
    "variant", ["auto", "rotated_rounding", "importance_sampling", "principal_project"]
)
def test_what_is_not_tuned_takes_the_values_of_full_memory(variant: str) -> None:
    for dataset in ("mnist", "cifar10"):
        found, full = (
            read(composed(f"dataset={dataset}", f"variant={name}"), []).settings
            for name in (variant, "baseline")
        )
        assert (found.learning_rate, found.weight_decay) == (full.learning_rate, full.weight_decay)
        other = read(composed(f"dataset={dataset}", "variant=different_project"), []).settings
        assert other.weight_decay != full.weight_decay


def test_the_command_line_beats_the_tuned_value() -> None:
    config = composed("dataset=mnist", "optimizer.learning_rate=0.5", "optimizer.iterations=7")
    settings = read(config, []).settings
    assert (settings.learning_rate, settings.iterations) == (0.5, 7)


def test_the_path_names_what_changes_the_outcome() -> None:
    given = ("variant=project", "seed=2", "optimizer.learning_rate=1e-2", "training.bootstrap=true")
    assert path(*given) == (
        "results/feedforward_digits/project/"
        "budget=0.1,optimizer.learning_rate=0.01,training.bootstrap=true/seed=2"
    )
    assert path(*given) == path(*reversed(given))


def test_the_path_leaves_out_what_does_not() -> None:
    runtime = (
        "data_root=x",
        "device=cpu",
        "logger.mode=disabled",
        "training.time_limit=3",
        "training.checkpoint_every=7",
        "training.cuda_graph=true",
    )
    assert path(*runtime, "variant=project") == path("variant=project")
    assert path("results_root=y") == "y/feedforward_digits/different_sample/budget=0.1/seed=0"


def test_the_same_value_written_otherwise_is_the_same_path() -> None:
    assert path("optimizer.learning_rate=1e-3") == path("optimizer.learning_rate=0.001")
    assert path("budget=0.10", "variant=project") == path("budget=0.1", "variant=project")
    assert "model.hidden=[9,8]" in path("model.hidden=[9, 8]")


def test_baseline_has_one_path_for_all_budgets() -> None:
    of_baseline = {path("variant=baseline", b) for b in ("budget=0.3", "budget='3.3 MB'", "seed=0")}
    assert len(of_baseline) == 1
    assert "budget=3300000" in path("budget='3.3 MB'", "variant=project")


def test_model_and_dataset_are_in_the_path_where_the_experiment_does_not_name_them() -> None:
    assert "dataset=" not in path("dataset=mnist")
    assert path("dataset=mnist").startswith("results/feedforward_mnist/")
    assert "dataset=mnist" in path("+experiment=quickstart", "dataset=mnist")
    assert "dataset=mnist" in path("experiment_name=mine", "dataset=mnist")


def test_config_text_knows_no_machine() -> None:
    machine = ("data_root=/a/b", "results_root=/c", "device=cpu", "logger.directory=/d")
    elsewhere = (*machine, "training.cuda_graph=true")
    assert read(composed(*elsewhere), elsewhere).settings.cuda_graph
    text = read(composed(*elsewhere), elsewhere).text
    assert text == read(composed(), []).text
    config = OmegaConf.create(text)
    assert not {"data_root", "results_root", "device", "logger"} & set(config)
    assert config.optimizer.learning_rate == 1e-3


def test_plot_composes() -> None:
    config = composed("experiment=quickstart", root=CONFIGS / "plot", name="plot")
    assert config.output == "plots/quickstart.png"


def test_dataset_options_are_in_the_path_and_in_config_text() -> None:
    given = ("model=irnn", "dataset=sequential_mnist", "dataset.downsample=4")
    spec = read(composed(*given), given)
    assert spec.dataset_options == {"downsample": 4, "permuted": False}
    assert "/budget=0.1,dataset.downsample=4/" in str(spec.path)
    text = OmegaConf.create(spec.text)
    assert text.dataset == {"name": "sequential_mnist", "downsample": 4, "permuted": False}
    assert OmegaConf.create(read(composed(), []).text).dataset == {"name": "digits"}


@pytest.mark.parametrize("option", ["dataset.downsample=3", "dataset.permuted=maybe"])
def test_bad_dataset_options_are_refused_without_data(option: str) -> None:
    given = ("dataset=sequential_mnist", option)
    with pytest.raises(UsageError, match=r"dataset\.(downsample 3|permuted is 'maybe')"):
        read(composed(*given), given)


def test_figure_5c_is_the_papers_setting() -> None:
    spec = read(composed("+experiment=fig5c_seqmnist"), ["+experiment=fig5c_seqmnist"])
    settings = spec.settings
    assert (settings.optimizer, settings.learning_rate, settings.clip_norm) == ("sgd", 1e-4, 1.0)
    assert (settings.iterations, settings.batch_size, settings.decay_every) == (200_000, 150, None)
    assert spec.config.model == {"name": "irnn", "hidden": 100, "std": 0.001}
    assert spec.dataset_options == {"downsample": 1, "permuted": False}
