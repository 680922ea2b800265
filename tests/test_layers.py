"""Imports point one way: train → pipeline → model → kernels, in pipeline along its rooms, and in no circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAYERS = [
    "kernels",
    "model",
    "pipeline.jpeg",
    "pipeline.inputs",
    "pipeline.outputs",
    "pipeline.report",
    "pipeline.engine",
    "pipeline.distributed",
    "pipeline",
    "train",
]
PUBLIC = "pipeline"
"""Its __init__ offers names of the rooms below it, and has to be imported before any of them."""


def modules() -> dict[str, Path]:
    """Module name → file, of all that is installed."""
    found = {}
    for top in {layer.partition(".")[0] for layer in LAYERS}:
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The project's modules that a file imports, those inside functions, too, but not for type checkers alone."""
    named, tree = set(), ast.parse(path.read_text())
    tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and _is_type_checking(node.test))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            module = node.module or ""
            named |= {f"{module}.{a.name}" if f"{module}.{a.name}" in known else module for a in node.names}
    return named & known.keys()


def _is_type_checking(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def layer(module: str) -> int:
    inside = [name for name in LAYERS if f"{module}.".startswith(f"{name}.")]
    return LAYERS.index(max(inside, key=len))


def test_no_import_points_upwards():
    known = modules()
    assert len(known) > 100
    for module, path in known.items():
        for imported in imports(path, known) - {PUBLIC}:
            assert layer(imported) <= layer(module), f"{module} imports {imported}"


def test_no_imports_form_a_circle():
    known = modules()
    graph = {module: imports(path, known) - {PUBLIC, module} for module, path in known.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError with the modules' names
