"""The command line is frozen: who changes a word of it does so on purpose."""

from pathlib import Path

from command_line import words

FROZEN = Path(__file__).with_name("command_line.txt")


def test_every_word_of_every_script_is_known() -> None:
    found, frozen = words(), FROZEN.read_text().splitlines()
    gone, new = sorted(set(frozen) - set(found)), sorted(set(found) - set(frozen))
    assert (gone, new) == ([], []), (
        f"if that is meant: python {FROZEN.with_suffix('.py')} > {FROZEN}"
    )
