"""Run folders: paths, locks, configurations, whole writes, provenance, reading back."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rad import results
from rad.errors import UsageError
from rad.results import RunFolder, difference, origin, run_path

CONFIG = "seed: 0\nmodel:\n  name: feedforward\n  hidden: [3, 4]\n"


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize(
    ("variant", "budget", "overrides", "expected"),
    [
        ("project", 0.1, [], "project/budget=0.1/seed=3"),
        ("project", 1.0, [], "project/budget=1/seed=3"),
        ("project", 3_300_000, [], "project/budget=3300000/seed=3"),
        ("project", 3.3e6, [], "project/budget=3300000/seed=3"),
        ("project", "3.3 MB", [], "project/budget=3.3_MB/seed=3"),
        ("baseline", 0.1, [], "baseline/budget=full/seed=3"),
        ("baseline", None, [], "baseline/budget=full/seed=3"),
        (
            "project",
            0.1,
            ["z.lr=0.2", "+a=x y", "path=b/c"],
            "project/budget=0.1,a=x_y,path=b%2Fc,z.lr=0.2/seed=3",
        ),
    ],
)
def test_run_path(
    variant: str, budget: float | str | None, overrides: list[str], expected: str
) -> None:
    assert run_path("out", "fig5b", variant, budget, overrides, 3) == Path("out/fig5b") / expected
    assert run_path("out", "fig5b", variant, budget, overrides[::-1], 3) == run_path(
        "out", "fig5b", variant, budget, overrides, 3
    )


@pytest.mark.parametrize("experiment", ["", "..", " ", "."])
def test_run_path_stays_below_its_root(experiment: str) -> None:
    with pytest.raises(UsageError, match="choose a name"):
        run_path("out", experiment, "project", 0.1, [], 0)
    assert run_path("out", "../../x", "project", 0.1, [], 0).parts[:2] == ("out", "..%2F..%2Fx")


def test_making_the_object_touches_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a" / "b")
    assert not folder.finished()
    assert names(tmp_path) == []


def test_open_writes_the_configuration_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a" / "b")
    with folder.open(CONFIG) as opened:
        assert opened is folder
        assert folder.config_file.read_text() == CONFIG
    stamp = folder.config_file.stat().st_mtime_ns
    reordered = "# a comment\nmodel:\n  name: feedforward\n  hidden: [3, 4]\nseed: 0\n"
    with folder.open(reordered):
        assert folder.config_file.read_text() == CONFIG
    assert folder.config_file.stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (CONFIG.replace("seed: 0", "seed: 1"), r"differing: seed \(0 there, 1 here\)"),
        (CONFIG.replace("4]", "5]"), r"differing: model\)"),
        (CONFIG + "extra: x\n", r"extra \(absent there, x here\)"),
    ],
)
def test_another_configuration_is_refused(tmp_path: Path, other: str, words: str) -> None:
    folder = RunFolder(tmp_path)
    with folder.open(CONFIG):
        folder.write_metrics([{"iteration": 0}], ["iteration"])
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(UsageError, match=words) as raised, folder.open(other):
        pytest.fail("the folder was opened")
    assert "delete" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_lock_keeps_a_second_one_out(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    with first.open(CONFIG):
        with pytest.raises(UsageError, match="another process"), second.open(CONFIG):
            pytest.fail("two hold one folder")
        with pytest.raises(UsageError, match="another process"), second.open(CONFIG):
            pytest.fail("the refusal released the lock")
    with second.open(CONFIG):
        pass


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    program = (
        "import sys, time; from rad.results import RunFolder\n"
        "with RunFolder(sys.argv[1]).open('a: 1\\n'):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="another process"), RunFolder(tmp_path).open("a: 1\n"):
            pytest.fail("two processes hold one folder")
        process.kill()
    with RunFolder(tmp_path).open("a: 1\n"):
        pass


def test_an_error_inside_releases_the_lock(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunFolder(tmp_path).open(CONFIG):
        raise ZeroDivisionError
    with RunFolder(tmp_path).open(CONFIG):
        pass


def test_unwritable_folder(tmp_path: Path) -> None:
    file = tmp_path / "results"
    file.write_text("mine")
    for path in (file, file / "fig5b"):
        with pytest.raises(UsageError, match="cannot write to the results folder") as raised:
            RunFolder(path).open(CONFIG).__enter__()
        assert str(path) in str(raised.value)
    assert file.read_text() == "mine"


def test_writes_are_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "metrics.csv"
    results.write_atomic(file, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UsageError, match="No space left"):
        results.write_atomic(file, b"new")
    assert file.read_bytes() == b"old"
    monkeypatch.undo()
    results.write_atomic(file, b"newer")
    assert file.read_bytes() == b"newer"
    assert names(tmp_path) == ["metrics.csv"]


def test_metrics_and_summary_files(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_metrics([{"a": 0.1 + 0.2, "b": None}, {"b": 3}], ["a", "b"])
    assert folder.metrics_file.read_text() == "a,b\n0.30000000000000004,\n,3\n"
    with pytest.raises(ValueError, match="JSON"):
        folder.write_summary({"loss": math.nan})
    assert not folder.finished()
    folder.write_summary({"loss": 0.5})
    assert folder.finished()
    folder.summary_file.write_text('{"loss": 0.')
    assert not folder.finished()
    with pytest.raises(UsageError, match=r"summary\.json is no JSON; restore that file") as raised:
        folder.summary()
    assert "\n" not in str(raised.value)


def finish(root: Path, variant: str, budget: float | str, seed: int, loss: float) -> RunFolder:
    folder = RunFolder(run_path(root, "fig5b", variant, budget, [], seed))
    with folder.open(f"seed: {seed}\n"):
        rows = [{"iteration": i, "train_loss": loss / (i + 1)} for i in range(3)]
        folder.write_metrics(rows, ["iteration", "train_loss", "test_loss"])
        folder.write_summary(
            {
                "variant": variant,
                "budget": budget,
                "seed": seed,
                "memory": {"saved_bytes": 8 * seed},
                "final": {"train_loss": loss},
                "versions": {"python": "3.11.9"},
            }
        )
    return folder


def test_reading_back(tmp_path: Path) -> None:
    finish(tmp_path, "project", 0.1, 1, 0.7)
    kept = finish(tmp_path, "baseline", "full", 2, 0.1 + 0.2)
    unfinished = RunFolder(run_path(tmp_path, "fig5b", "project", 0.1, [], 9))
    with unfinished.open("seed: 9\n"):
        unfinished.write_metrics([{"iteration": 0}], ["iteration"])

    table = results.summaries(tmp_path, "fig5b")
    assert table["variant"].tolist() == ["baseline", "project"]
    assert table["memory.saved_bytes"].tolist() == [16, 8]
    assert table["final.train_loss"].tolist() == [0.1 + 0.2, 0.7]
    assert table["path"].iloc[0] == str(kept.path)

    rows = results.metrics(tmp_path, "fig5b")
    assert len(rows) == 6
    chosen = rows[rows["variant"] == "baseline"]
    assert chosen["train_loss"].tolist() == pytest.approx([0.3, 0.15, 0.1], rel=1e-12)
    assert chosen["budget"].tolist() == ["full"] * 3
    assert chosen["seed"].tolist() == [2] * 3
    assert chosen["test_loss"].isna().all()

    kept.metrics_file.write_text("")
    with pytest.raises(UsageError, match=r"metrics\.csv"):
        results.metrics(tmp_path, "fig5b")


@pytest.mark.parametrize("read", [results.summaries, results.metrics])
def test_nothing_to_read(tmp_path: Path, read: object) -> None:
    assert callable(read)
    with pytest.raises(UsageError, match=r"scripts/train\.py \+experiment=fig5b") as raised:
        read(tmp_path, "fig5b")
    assert str(tmp_path / "fig5b") in str(raised.value)


def test_provenance_names_no_machine_path(monkeypatch: pytest.MonkeyPatch) -> None:
    here = str(origin.REPOSITORY)
    arguments = [
        f"{here}/scripts/train.py",
        "model=feedforward",
        "budget=3.3 MB",
        "scratch.root=/mnt/disk/data",
        "data_root=/mnt/disk/data",
        f"output={here}/results",
        "+x=[/a/b,/c]",
        "~logger",
        "optimizer/adam=a/b",
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    found = results.provenance()
    assert found["command"] == (
        "python scripts/train.py model=feedforward 'budget=3.3 MB' scratch.root=PATH "
        "output=results '+x=[PATH,PATH]' '~logger' optimizer/adam=a/b"
    )
    assert {"python", "torch", "numpy"} <= found["versions"].keys()
    json.dumps(found, allow_nan=False)
    monkeypatch.setattr(sys, "argv", ["/opt/elsewhere/tool.py"])
    assert results.provenance()["command"] == "python tool.py"
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")
    assert results.provenance()["command"] == "MALLOC_MMAP_THRESHOLD_=131072 python tool.py"


def _git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "REPOSITORY", tmp_path)
    monkeypatch.delenv("RAD_COMMIT", raising=False)
    assert results.provenance()["commit"] == "unknown"
    monkeypatch.setenv("RAD_COMMIT", "abc")
    assert results.provenance()["commit"] == "abc"
    _git(tmp_path, "init", "-q")
    assert results.provenance()["commit"] == "abc"
    (tmp_path / "file").write_text("1")
    _git(tmp_path, "add", "file")
    _git(tmp_path, "commit", "-qm", "one")
    _git(tmp_path, "tag", "v1")
    head = _git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "untracked").write_text("1")
    assert results.provenance()["commit"] == head
    (tmp_path / "file").write_text("2")
    assert results.provenance()["commit"] == f"{head}-dirty"


def test_results_need_no_torch() -> None:
    program = (
        "import sys, types; bare = types.ModuleType('rad'); bare.__path__ = [sys.argv[1]]\n"
        "sys.modules['rad'] = bare; import rad.results; sys.exit('torch' in sys.modules)"
    )
    package = str(Path(results.__file__).parents[1])
    assert subprocess.run([sys.executable, "-c", program, package]).returncode == 0


def test_a_setting_that_is_younger_than_a_run_is_no_difference_at_its_default() -> None:
    before, after = "seed: 0\n", "seed: 0\nkind: saved\nslices: null\n"
    defaults = {"kind": "saved", "slices": None}
    assert difference(before, after) == (
        "kind (absent there, saved here), slices (absent there, null here)"
    )
    assert difference(before, after, defaults) == ""
    assert difference(before, "seed: 0\nkind: peak\n", defaults) == (
        "kind (absent there, peak here)"
    )
    assert difference(after, before, defaults).startswith("kind (saved there, absent here)")
