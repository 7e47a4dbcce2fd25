"""One module of the product with another text in it, for this process alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType

from tests.mutants.breaks import Break


class _Loader(SourceFileLoader):
    """Never from the byte code that is cached."""

    change: Break

    def get_code(self, fullname: str) -> CodeType | None:
        text = self.get_data(self.path).decode()
        if text.count(self.change.old) != 1:
            raise LookupError(f"{self.change.name}: its text is in {self.path} {text.count(self.change.old)} times")
        return compile(text.replace(self.change.old, self.change.new), self.path, "exec")


class _Finder:
    def __init__(self, change: Break) -> None:
        self._change = change

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != f"pipeline.{self._change.module}":
            return None
        spec = PathFinder.find_spec(name, path, target)
        assert spec is not None
        assert spec.origin is not None
        loader = _Loader(name, spec.origin)
        loader.change = self._change
        spec.loader = loader
        return spec


def install(change: Break) -> None:
    """Before anything of the product is imported."""
    assert not any(name == f"pipeline.{change.module}" for name in sys.modules)
    sys.meta_path.insert(0, _Finder(change))  # type: ignore[arg-type]
