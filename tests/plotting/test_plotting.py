from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from rad import plotting
from rad.errors import UsageError
from rad.planning.variants import variants
from rad.plotting.curves import conditions
from rad.plotting.report.page import SYMBOLS

SAVED = {"baseline": 1_563_636, "reduced_batch": 226_020, "different_sample": 243_111}


def frames(
    variants: tuple[str, ...] = tuple(SAVED), budget: str = "0.1", extra: str = "", seeds: int = 3
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Metrics and summaries as `rad.results` gives them; seed s has loss (1, 2, 6)[s] 2^-i."""
    rows, runs = [], []
    for variant in variants:
        for seed in range(seeds):
            spent = "full" if variant == "baseline" else budget
            suffix = f",{extra}" if extra else ""
            path = f"results/toy/{variant}/budget={spent}{suffix}/seed={seed}"
            label = {"variant": variant, "budget": spent, "seed": seed, "path": path}
            for i in range(5):
                values = {"iteration": 100 * i, "seconds": float(i + seed)}
                # The training loss is evaluated at every second row only.
                loss = np.nan if i % 2 else (1, 2, 6)[seed] * 2.0**-i
                rows.append({**values, "train_loss": loss, "test_accuracy": 0.2 * i, **label})
            runs.append(
                {
                    "batch_size": 22 if variant == "reduced_batch" else 150,
                    "keep_fraction": 0.1 if variant == "different_sample" else None,
                    "memory.saved_bytes": SAVED.get(variant, 5),
                    "final.train_loss": 0.01 * (1, 2, 6)[seed],
                    "final.test_accuracy": 0.9 + 0.01 * seed,
                    **label,
                }
            )
    return pd.DataFrame(rows), pd.DataFrame(runs)


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_curve_is_the_mean_and_the_band_the_extremes() -> None:
    figure = plotting.convergence(*frames(("different_sample",)))
    (axes,) = figure.axes
    (line,) = axes.lines
    assert list(np.asarray(line.get_xdata())) == [0, 200, 400]
    assert np.asarray(line.get_ydata()) == pytest.approx([3.0, 0.75, 0.1875])
    band = np.asarray(axes.collections[0].get_paths()[0].vertices)
    assert set(band[band[:, 0] == 200][:, 1]) == {0.25, 1.5}
    assert axes.get_yscale() == "log"
    assert axes.get_ylabel() == "training loss"


def test_legend_gives_batch_and_saved_bytes_in_fixed_order() -> None:
    figure = plotting.convergence(*frames(("different_sample", "baseline", "reduced_batch")))
    assert legend(figure) == [
        "baseline, 150, 1.56 MB",
        "reduced batch, 22, 226 kB",
        "different sample, 150, 243 kB",
    ]
    title = figure.legends[0].get_title().get_text()
    assert "3 seeds" in title
    assert "lowest to highest" in title


def test_style_belongs_to_the_variant_not_to_the_figure() -> None:
    def colour(variants: tuple[str, ...]) -> str:
        figure = plotting.convergence(*frames(variants))
        place = [t.split(",")[0] for t in legend(figure)].index("different sample")
        return str(figure.axes[0].lines[place].get_color())

    assert colour(("different_sample",)) == colour(
        ("baseline", "reduced_batch", "different_sample")
    )


def test_every_variant_has_a_look_of_its_own() -> None:
    assert set(variants()) <= set(plotting.STYLES)
    assert {marker for _, marker in plotting.STYLES.values()} <= set(SYMBOLS)
    colours, markers = zip(*plotting.STYLES.values(), strict=True)
    assert len(set(colours)) == len(set(markers)) == len(plotting.STYLES)


def test_no_two_programs_or_variants_share_a_colour() -> None:
    looks = {**plotting.PROGRAMS, **plotting.STYLES}
    del looks["baseline"]  # torch, in figures of programs
    assert len({colour for colour, _ in looks.values()}) == len(looks)


def test_a_figure_names_net_data_iterations_and_seeds() -> None:
    rows, runs = frames()
    own = runs.assign(model="convnet", dataset="cifar10", iterations=3200, scale="cpu")
    title = plotting.convergence(rows, own).legends[0].get_title().get_text()
    assert title.startswith("convnet on cifar10, 3,200 iterations, scale cpu\nmean of 3 seeds")


def test_a_caption_says_only_what_all_runs_have_in_common() -> None:
    runs = pd.DataFrame(
        {
            "model": ["irnn", "irnn"],
            "dataset": ["digits", "digits"],
            "iterations": [40, 80],
            "scale": ["cpu", None],
            "layers": [{"a": 1}, None],
        }
    )
    assert conditions(runs) == "irnn on digits"
    assert conditions(runs[:1]) == "irnn on digits, 40 iterations, scale cpu"


def test_losses_have_labelled_ticks_and_accuracy_the_range_of_trained_nets() -> None:
    rows, runs = frames()
    figure = plotting.convergence(rows, runs, second="test_accuracy")
    figure.draw_without_rendering()
    loss, accuracy = figure.axes
    assert sum(bool(label.get_text()) for label in loss.get_yticklabels()) >= 2
    late = rows.loc[rows["iteration"] >= rows["iteration"].max() / 4, "test_accuracy"]
    low, high = accuracy.get_ylim()
    assert late.min() - 0.1 < low <= late.min()
    assert late.max() <= high <= 1


def test_column_width_and_legible_text() -> None:
    figure = plotting.convergence(*frames(), second="test_accuracy")
    assert figure.get_figwidth() == 3.3
    texts = [*figure.legends[0].get_texts(), *(axes.yaxis.label for axes in figure.axes)]
    assert min(float(text.get_fontsize()) for text in texts) >= 7
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1


def test_second_panel_and_seconds() -> None:
    figure = plotting.convergence(*frames(), x="seconds", second="test_accuracy")
    loss, accuracy = figure.axes
    assert accuracy.get_yscale() == "linear"
    assert accuracy.get_xlabel() == "seconds of training"
    assert list(np.asarray(loss.lines[0].get_xdata())) == [1.0, 3.0, 5.0]
    assert list(np.asarray(loss.lines[0].get_ydata())) == pytest.approx([3.0, 0.75, 0.1875])
    assert np.asarray(accuracy.lines[0].get_ydata()) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])


@pytest.mark.parametrize("column", ["loss", "train_accuracy"])
def test_missing_column_names_the_choices(column: str) -> None:
    rows, runs = frames()
    rows["train_accuracy"] = np.nan
    with pytest.raises(UsageError, match=rf"'{column}'.*train_loss"):
        plotting.convergence(rows, runs, column)


def test_files_are_the_same_each_time_and_hold_no_date(tmp_path: Path) -> None:
    written = []
    for name in ("a", "b"):
        figure = plotting.convergence(*frames())
        png, pdf = plotting.save(figure, tmp_path / "new" / f"{name}.png")
        written.append((png.read_bytes(), pdf.read_bytes()))
    assert written[0] == written[1]
    assert written[0][0].startswith(b"\x89PNG")
    assert written[0][1].startswith(b"%PDF")
    assert b"CreationDate" not in written[0][1]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "a.pdf",
        "a.png",
        "b.pdf",
        "b.png",
    ]


def test_save_refuses_a_folder_that_cannot_be_and_other_kinds(tmp_path: Path) -> None:
    figure = plotting.convergence(*frames())
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UsageError, match="cannot make the folder"):
        plotting.save(figure, tmp_path / "file" / "a.png")
    with pytest.raises(UsageError, match=r"\.jpg"):
        plotting.save(figure, tmp_path / "a.jpg")
    assert (tmp_path / "file").read_text() == "kept"


def test_select_joins_baseline_with_the_chosen_budget() -> None:
    rows = pd.concat([frames()[0], frames(("different_sample",), budget="0.3")[0]])
    assert set(plotting.select(rows, 0.3)["budget"]) == {"full", "0.3"}
    with pytest.raises(UsageError, match=r"several budget.*budget=0\.1, budget=0\.3"):
        plotting.select(rows)
    with pytest.raises(UsageError, match=r"budget=0\.2.*budget=0\.1, budget=0\.3"):
        plotting.select(rows, 0.2)


def test_select_never_mixes_overrides() -> None:
    extra = "optimizer.iterations=2000"
    rows = pd.concat([frames()[0], frames(extra=extra)[0]])
    with pytest.raises(UsageError, match="several overrides"):
        plotting.select(rows)
    chosen = plotting.select(rows, overrides=extra)
    assert len(chosen) == len(rows) // 2
    assert chosen["path"].str.contains(extra).all()


def test_table() -> None:
    table = plotting.summary_table(frames(("different_sample", "baseline"))[1]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert cells[0][:5] == ["variant", "budget", "batch", "keep", "saved bytes"]
    loss, accuracy = "0.0300 ± 0.0265", "91.00 ± 1.00 %"
    assert cells[2] == ["baseline", "full", "150", "", "1,563,636", loss, accuracy, "3"]
    assert cells[3] == ["different_sample", "0.1", "150", "0.1", "243,111", loss, accuracy, "3"]
    assert len({len(line) for line in table}) == 1


def of_a_language_model() -> tuple[pd.DataFrame, pd.DataFrame]:
    """What was evaluated as a language model has it; no accuracy."""
    rows, runs = frames()
    bits = rows["test_accuracy"] + 1
    rows = rows.drop(columns="test_accuracy").assign(
        test_loss=bits, test_bits_per_token=bits, train_bits_per_token=bits
    )
    runs = runs.rename(columns={"final.test_accuracy": "final.test_bits_per_token"})
    return rows, runs.assign(**{"final.test_loss": 0.7})


def test_a_task_without_accuracy_is_shown_without() -> None:
    rows, runs = of_a_language_model()
    header, _, first, *_ = plotting.summary_table(runs).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (header, first)]
    assert dict(zip(*cells, strict=True))["test bits per token"] == "0.910 ± 0.010"
    assert "accuracy" not in header
    figure = plotting.four_panels(rows, runs)
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels[2:] == ["training bits per token", "test bits per token"]
    plotting.convergence(rows, runs, "test_bits_per_token")
    plotting.final_against_memory(
        runs.assign(**{"memory.parameter_bytes": 9}), "test_bits_per_token"
    )
    with pytest.raises(UsageError, match=r"no 'test_accuracy'.*test_bits_per_token"):
        plotting.convergence(rows, runs, "test_accuracy")


def test_front_shows_what_is_reached_with_how_many_bytes_and_in_how_much_time() -> None:
    rows, runs = frames(("baseline", "different_sample"))
    left, right = plotting.front(rows, runs, "train_loss").axes
    ends = {bars.get_label(): bars.lines[0].get_xydata()[0] for bars in left.containers}
    assert ends["baseline"] == pytest.approx((1.563636, 0.03))
    assert ends["different sample"] == pytest.approx((0.243111, 0.03))
    curve = right.lines[0].get_xydata()
    assert curve[0] == pytest.approx((3.0, 0.75))  # iteration 200, the first that was evaluated
    assert right.get_xlabel() == "seconds of training"
    with pytest.raises(UsageError, match="no run ends with 'batch_loss': choose a column"):
        plotting.front(rows.assign(batch_loss=1.0), runs, "batch_loss")


def test_table_of_one_seed_has_no_spread() -> None:
    table = plotting.summary_table(frames(("baseline",), seeds=1)[1])
    assert "0.0100" in table
    assert "±" not in table


@pytest.mark.parametrize(
    ("count", "text"),
    [(999, "999 B"), (1000, "1 kB"), (243_111, "243 kB"), (999_499, "999 kB"), (999_500, "1 MB")],
)
def test_byte_text(count: int, text: str) -> None:
    assert plotting.byte_text(count) == text


def test_figures_of_the_committed_tables() -> None:
    root = Path(__file__).resolve().parents[2] / "results"
    table_1 = plotting.memory_figure(pd.read_csv(root / "table1" / "table1.csv"))
    assert [axes.get_ylabel().split()[0] for axes in table_1.axes] == [
        "convnet",
        "feedforward",
        "irnn",
    ]
    benchmarks = plotting.benchmark_figure(pd.read_csv(root / "benchmarks" / "cpu.csv"))
    assert len(benchmarks.axes[0].get_lines()) == 9 + 1


def test_the_committed_table_1_is_within_its_goals() -> None:
    table = pd.read_csv(Path(__file__).resolve().parents[2] / "results" / "table1" / "table1.csv")
    assert len(table) == 18
    assert (table["paper_mb"].round(2) == table["printed_mb"]).sum() == 17
    assert ((table["saved_mb"] / table["honest_mb"] - 1).abs() < 0.002).all()


def test_the_table_shows_the_bootstrap_loss_of_runs_that_have_one() -> None:
    runs = pd.DataFrame(
        {
            "variant": ["project"] * 2,
            "budget": ["0.1"] * 2,
            "seed": [0, 1],
            "batch_size": [150] * 2,
            "keep_fraction": [0.1] * 2,
            "memory.saved_bytes": [7] * 2,
            "final.train_loss": [0.5, 0.7],
            "final.test_accuracy": [0.9, 0.9],
        }
    )
    assert "bootstrap" not in plotting.summary_table(runs)
    table = plotting.summary_table(runs.assign(**{"final.bootstrap_loss": [1e-6, 3e-6]}))
    assert "bootstrap loss" in table.splitlines()[0]
    assert "2.00e-06 ± 1.4e-06" in table
    assert "0.600 ± 0.141" in table
