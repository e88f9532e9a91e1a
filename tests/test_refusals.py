"""Every refusal says what to do, as far as that can be read from the code."""

import ast
import re
from pathlib import Path

import pytest

RAD = Path(__file__).resolve().parents[1] / "rad"
VERBS = (
    "add bring call choose close compile connect convert correct delete finish free give go "
    "install keep leave let log lower make measure mend move name pass pip put raise "
    "reinstall remove rename replace restore return run say set start sum sweep take train use"
)
REMEDY = re.compile(rf"(^|[:;,(] |\b(?:or|and|with|which) )(?:{'|'.join(VERBS.split())})\b")
"""What is to be done stands after what is wrong, as an imperative."""
ELSEWHERE = re.compile(r"remedy|REMEDY|GRAMMAR|\{(how|has)\}|the same command goes on")
"""Names of texts that are put together elsewhere, and hold the remedy."""


def refusals() -> list[tuple[str, str]]:
    """Place and text of each `UsageError(...)` of the library; `{...}` for what is filled in."""
    found = []
    for file in sorted(RAD.rglob("*.py")):
        for call in ast.walk(ast.parse(file.read_text())):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "UsageError":
                where = f"{file.relative_to(RAD)}:{call.lineno}"
                found.append((where, text(call.args[0])))
    return found


def text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text(part) for part in node.values)
    return f"{{{ast.unparse(node.value if isinstance(node, ast.FormattedValue) else node)}}}"


def has_remedy(words: str) -> bool:
    """Whether it is there, or the words are another refusal's, passed on."""
    fixed = re.sub(r"\{.*?\}", "", words)
    passed_on = not re.search("[a-z]", fixed)
    return passed_on or bool(REMEDY.search(words) or ELSEWHERE.search(words))


def test_refusals_name_a_remedy() -> None:
    found = refusals()
    assert len(found) > 250
    assert [f"{where}: {words}" for where, words in found if not has_remedy(words)] == []


@pytest.mark.parametrize("words", ["{name} has no option {x}", "the width must be 2, got {width}"])
def test_a_bare_refusal_is_seen(words: str) -> None:
    assert not has_remedy(words)
