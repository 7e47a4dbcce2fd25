"""Who may import whom, how big a module may be, and that the pure core is pure. The rules are in `rules.py`."""

from __future__ import annotations

import importlib
import subprocess
from pathlib import Path

import pytest

from tests.architecture.rules import (
    MAY_IMPORT,
    MODULE_LINES_AIM,
    PACKAGE,
    ROOT,
    product_files,
    violations,
)

SHARED = "/".join(("..", "shared")), "/".join(("", "work", "shared"))
MAY_NAME_SHARED = ("tests/", "examples/")


@pytest.mark.parametrize("path", product_files(), ids=str)
def test_a_module_keeps_to_the_architecture(path: Path) -> None:
    assert violations((PACKAGE / path).read_text(encoding="utf-8"), path) == []


BREAKING = {
    "core imports worker": ("core/x.py", "from pipeline.worker.engine import Engine", "may not import"),
    "core imports an adapter for its types": (
        "core/x.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pipeline.kafka import x",
        "may not import",
    ),
    "core has a clock": ("core/x.py", "def f():\n    import time", "pure core"),
    "core has threads": ("core/x.py", "from threading import Lock", "pure core"),
    "core logs": ("core/x.py", "import logging", "pure core"),
    "core draws": ("core/x.py", "from random import random", "pure core"),
    "core knows structlog": ("core/x.py", "import structlog", "pure core"),
    "core prints": ("core/x.py", "print(1)", "may not call print"),
    "model imports core": ("model/x.py", "import pipeline.core.unit", "may not import"),
    "model imports core relatively": ("model/x.py", "from ..core import unit", "may not import"),
    "model imports core from the top": ("model/x.py", "from pipeline import core", "may not import"),
    "codec imports core": ("codec/x.py", "from pipeline.core import unit", "may not import"),
    "kafka imports core": ("kafka/x.py", "from pipeline.core import unit", "may not import"),
    "kafka imports codec": ("kafka/embedded/x.py", "from pipeline.codec import wire", "may not import"),
    "memory imports kafka": ("memory/x.py", "from pipeline.kafka import x", "may not import"),
    "worker imports cli": ("worker/x.py", "from pipeline.cli import main", "may not import"),
    "worker imports the app": ("worker/x.py", "from pipeline.app import Pipeline", "may not import"),
    "app imports cli": ("app.py", "from pipeline.cli import main", "may not import"),
    "views import cli": ("views/x.py", "from pipeline.cli import main", "may not import"),
    "faust outside views": ("worker/x.py", "import faust", "may not know faust"),
    "confluent_kafka outside adapters": ("worker/x.py", "from confluent_kafka import Consumer", "may not know"),
    "confluent_kafka in the core": ("core/x.py", "import confluent_kafka", "may not know"),
    "pickle": ("worker/x.py", "import pickle", "anywhere"),
    "environment": ("worker/x.py", "import os\nos.environ['A']", "settings"),
    "environment by name": ("kafka/x.py", "from os import getenv", "settings"),
    "long module": ("worker/x.py", "x = 1\n" * 400, "401 lines"),
    "long function": ("worker/x.py", "def f():\n" + "    x = 1\n" * 60, "function f has 61 lines"),
    "__all__ unsorted": ("worker/x.py", "a = b = 1\n__all__ = ['b', 'a']", "not sorted"),
    "__all__ names nothing": ("worker/x.py", "a = 1\n__all__ = ['a', 'b']", "names b"),
    "a message's headers": ("inspect/x.py", "def f(m):\n    return dict(m.headers() or ())", "headers_in asks"),
    "no docstring": ("worker/x.py", "a = 1", "no docstring"),
    "an unknown layer": ("utils/x.py", "a = 1", "not a layer"),
}


@pytest.mark.parametrize("name", BREAKING)
def test_a_violation_is_seen(name: str) -> None:
    path, source, wanted = BREAKING[name]
    found = violations(source + "\n", Path(path))
    assert any(wanted in fault for fault in found), found


def test_what_is_allowed_is_not_a_violation() -> None:
    source = '"""A module."""\nfrom typing import TYPE_CHECKING\nfrom pipeline.core.unit import Unit\nif TYPE_CHECKING:\n    import faust\n'
    assert violations(source, Path("worker/x.py")) == []


def test_the_leaves_are_leaves() -> None:
    for leaf in ("cli", "console"):
        assert not [layer for layer, may in MAY_IMPORT.items() if leaf in may and layer not in (leaf, "cli")]


@pytest.mark.parametrize("path", [p for p in product_files() if p.name == "__init__.py"], ids=str)
def test_every_public_name_can_be_imported(path: Path) -> None:
    module = importlib.import_module(".".join(("pipeline", *path.parts[:-1])))
    names = list(getattr(module, "__all__", ()))
    assert names == sorted(names)
    assert not [name for name in names if not hasattr(module, name)]


def test_modules_over_the_aim_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    lengths = {path: (PACKAGE / path).read_text(encoding="utf-8").count("\n") for path in product_files()}
    over = sorted(((lines, path) for path, lines in lengths.items() if lines > MODULE_LINES_AIM), reverse=True)
    with capsys.disabled():
        for lines, path in over:
            print(f"\n  {path}: {lines} lines, the aim is {MODULE_LINES_AIM}", end="")
    assert len(over) <= len(lengths) / 5, "too many modules are past the aim: look for seams"


def _committed() -> list[str]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, timeout=30)
    return [name for name in done.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def test_nothing_but_tests_and_examples_names_the_shared_folder() -> None:
    files = _committed()
    assert files
    naming = []
    for name in files:
        text = (ROOT / name).read_bytes()
        if not name.startswith(MAY_NAME_SHARED) and any(shared.encode() in text for shared in SHARED):
            naming.append(name)
    assert naming == []
