from pathlib import Path

from calling import Call


def test_bad_input_ends_in_one_line(call: Call, tmp_path: Path) -> None:
    for bad in ("networks=[vgg]", "draws.convnet=1", "iterations.convnet=null"):
        done = call("allocation", bad)
        assert (done.status, len(done.err.splitlines())) == (2, 1)
    assert not list(tmp_path.iterdir())
