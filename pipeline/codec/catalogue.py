"""The contracts on disk: `schemas/*.avsc` as they are now, and `schemas/history/<Record>/<n>.avsc` as they
were.

Found next to the package in a checkout and inside it in a wheel. A user's own contracts come from further
folders.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path

from pipeline.codec.schema import AvroSchema, SchemaRefused, parse
from pipeline.model.errors import ConfigurationError

HISTORY = "history"


def schemas_directory() -> Path:
    """The folder with the product's own contracts. Raises ConfigurationError when the installation has
    none.
    """
    packaged = Path(str(resources.files("pipeline"))) / "schemas"
    checkout = Path(__file__).resolve().parents[2] / "schemas"
    for folder in (packaged, checkout):
        if folder.is_dir():
            return folder
    raise ConfigurationError(
        f"The folder with the Avro contracts is missing (looked at {packaged} and {checkout}); "
        "install the package again."
    )


@dataclass(frozen=True)
class SchemaCatalogue:
    """Contracts by full record name: `present` is what this build writes and reads, `history` oldest
    first.
    """

    present: Mapping[str, AvroSchema]
    history: Mapping[str, tuple[AvroSchema, ...]] = field(default_factory=dict)

    @classmethod
    def load(cls, folders: Iterable[Path] = ()) -> SchemaCatalogue:
        """The product's contracts and those of further folders.

        Raises ConfigurationError naming the file that can't be read, or a record that two files define.
        """
        present: dict[str, AvroSchema] = {}
        history: dict[str, tuple[AvroSchema, ...]] = {}
        for folder in (schemas_directory(), *folders):
            if not folder.is_dir():
                raise ConfigurationError(f"Schema folder {folder} does not exist.")
            for path in sorted(folder.glob("*.avsc")):
                schema = read_schema(path)
                if schema.name in present:
                    raise ConfigurationError(
                        f"Record {schema.name} in {path} is already defined; rename one of the two."
                    )
                present[schema.name] = schema
                history[schema.name] = tuple(map(read_schema, history_files(folder, schema.name)))
        return cls(present, history)

    @cached_property
    def by_fingerprint(self) -> Mapping[str, AvroSchema]:
        """Every version on disk by its fingerprint, the present one first where two are alike."""
        versions = [schema for past in self.history.values() for schema in past]
        return {schema.fingerprint: schema for schema in (*versions, *self.present.values())}


@lru_cache(maxsize=1)
def product_catalogue() -> SchemaCatalogue:
    """The product's own contracts, read once per process."""
    return SchemaCatalogue.load()


def history_files(folder: Path, name: str) -> list[Path]:
    """The earlier versions of a record on disk, oldest first."""
    past = folder / HISTORY / name.rpartition(".")[2]
    return sorted(past.glob("*.avsc"), key=lambda path: (len(path.stem), path.stem))


def read_schema(path: Path) -> AvroSchema:
    """One .avsc file. Raises ConfigurationError that names it."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, SchemaRefused) as error:
        raise ConfigurationError(f"Schema file {path} can't be used: {error}") from error
