"""The rules of who may import whom, checked on sources without running them."""

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import networkx as nx

LIBRARY = (
    *("errors", "dtypes", "backends", "packing", "draws", "kernels", "sketches"),
    *("functional", "memory", "nn", "conversion", "partition", "planning"),
)
"""Packages of the library, each of which may import those before it."""

LABORATORY = (
    *("models", "data", "results", "training", "plotting", "tuning", "graph", "pde"),
    *("benchmarks", "gradient_noise", "processes", "schema", "pages", "torture"),
)
"""Packages of the laboratory: each may import the library, and those before it."""

EXPERIMENTS = ("torchvision", "hydra", "omegaconf", "wandb", "pandas", "matplotlib", "optuna")
"""What the library does without."""

Sources = Mapping[str, str]
"""Names of modules, and their texts."""


@dataclass(frozen=True)
class Import:
    """`importer` imports `imported`, both dotted names of modules or of what is in them.

    `later`: when a function is called, or for types alone, and not when it is loaded.
    """

    importer: str
    imported: str
    later: bool = False

    @property
    def packages(self) -> tuple[str, str]:
        """The two packages below `rad`; the imported one's own name where it is another's."""
        return _package(self.importer), _package(self.imported)

    def __str__(self) -> str:
        return f"{self.importer} imports {self.imported}"


def _package(name: str) -> str:
    top, *rest = name.split(".")
    return rest[0] if top == "rad" and rest else top


def sources(root: Path) -> Sources:
    """The modules below a folder that holds the package `rad`."""
    files = sorted((root / "rad").rglob("*.py"))
    names = [file.relative_to(root).with_suffix("").as_posix().replace("/", ".") for file in files]
    texts = [file.read_text() for file in files]
    return {name.removesuffix(".__init__"): text for name, text in zip(names, texts, strict=True)}


def imports(modules: Sources) -> Iterator[Import]:
    """Every import of every module, inside functions too."""
    for importer, text in modules.items():
        for module, name, later in _statements(text):
            inner = f"{module}.{name}"
            yield Import(importer, inner if inner in modules else module, later)


@cache
def _statements(text: str) -> list[tuple[str, str, bool]]:
    """Module, name in it or "", and whether it waits, of each import of a module."""
    tree = ast.parse(text)
    waiting = [node for node in ast.walk(tree) if _waits(node)]
    later = {inner for node in waiting for inner in ast.walk(node)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, "", node in later) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [(node.module, alias.name, node in later) for alias in node.names]
    return found


def _waits(node: ast.AST) -> bool:
    """Whether what is in it does not run when its module is loaded."""
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def violations(modules: Sources) -> list[str]:
    """What breaks the rules, in words."""
    found = list(imports(modules))
    broken = [f"{each}: {rule}" for each in found for rule in _rules(each)]
    return [*broken, *(f"circle: {' > '.join(circle)}" for circle in circles(found))]


def _rules(each: Import) -> Iterator[str]:
    importer, imported = each.packages
    if importer == "rad":  # the front door
        return
    if importer in LIBRARY:
        if imported in LABORATORY:
            yield "the library imports no laboratory"
        if _is_later(imported, importer, LIBRARY):
            yield "packages of the library import earlier ones only"
        if imported in EXPERIMENTS:
            yield "the library needs torch, numpy and numba only"
    if _is_later(imported, importer, LABORATORY):
        yield "packages of the laboratory import earlier ones only"
    if importer not in (*LIBRARY, *LABORATORY):
        yield "a package has its place in LIBRARY or LABORATORY"
    if importer == "training" and imported in LIBRARY and imported != "errors":
        yield "training takes any module and does not know that RAD exists"
    light = importer in ("plotting", "results")
    if light and (imported in LIBRARY[1:] or (imported == "torch" and not each.later)):
        yield "plotting and results need no torch"
    if imported in ("hydra", "omegaconf"):
        yield "nothing in rad knows of Hydra"
    if imported == "scripts" or (imported.startswith("_") and imported != "__future__"):
        yield "nothing in rad imports scripts"
    if imported == "triton" and not {"kernels", "cuda"} & {*each.importer.split(".")}:
        yield "Triton may be absent: only kernels import it"


def _is_later(imported: str, importer: str, order: tuple[str, ...]) -> bool:
    return {imported, importer} <= set(order) and order.index(imported) > order.index(importer)


def circles(found: Iterable[Import]) -> list[list[str]]:
    """Modules that import each other, in whichever way; packages and what is in them aside."""
    graph = nx.DiGraph((each.importer, each.imported) for each in found)
    return [cycle for cycle in nx.simple_cycles(graph) if not _is_own_package(cycle)]


def _is_own_package(cycle: list[str]) -> bool:
    """Whether a package's `__init__` and its modules are all that a circle consists of."""
    around = pairwise([*cycle, cycle[0]])
    return any(a.startswith(f"{b}.") or b.startswith(f"{a}.") for a, b in around)


def depth(found: Iterable[Import]) -> int:
    """Floors of the library: the longest chain of packages that import each other."""
    pairs = {each.packages for each in found}
    graph = nx.DiGraph((a, b) for a, b in pairs if a != b and {a, b} <= set(LIBRARY))
    return int(nx.dag_longest_path_length(graph)) + 1
