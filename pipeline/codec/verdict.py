"""`pipeline schemas check`: the contracts against every version that was ever committed, and against a
registry.

Folder `history/<Record>/<n>.avsc` holds each version that was released. A contract that differs from the
newest one there and is compatible has to be added (`freeze`), or later changes would not be held to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.codec.catalogue import HISTORY, SchemaCatalogue, history_files, read_schema
from pipeline.codec.compatibility import check_versions
from pipeline.codec.registry import SchemaRegistry, subject_of
from pipeline.codec.schema import AvroSchema, SchemaRefused, parse
from pipeline.model.errors import IncompatibleSchema


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found of one contract; `against` is `history` or a registry's subject. `problem` is empty when
    fine.
    """

    record: str
    against: str
    versions: int
    problem: str = ""


def check_history(catalogue: SchemaCatalogue) -> list[Verdict]:
    """Each contract against its committed versions."""
    return [_against_history(schema, catalogue.history.get(name, ())) for name, schema in catalogue.present.items()]


def _against_history(schema: AvroSchema, past: Sequence[AvroSchema]) -> Verdict:
    problem = _incompatible(schema, past, schema.compatibility)
    if not problem and (not past or contract_of(past[-1].definition) != contract_of(schema.definition)):
        what = "differs from its newest committed version" if past else "has no committed version"
        problem = f"{schema.name} {what}; add it with `pipeline schemas check --freeze`."
    return Verdict(schema.name, HISTORY, len(past), problem)


def check_registry(catalogue: SchemaCatalogue, registry: SchemaRegistry) -> list[Verdict]:
    """Each contract against the versions of every subject, of any topic, that is about its record."""
    verdicts: list[Verdict] = []
    for subject in registry.subjects():
        schema = next((s for name, s in catalogue.present.items() if subject.endswith(subject_of("", name))), None)
        if schema is not None:
            texts = [version.text for version in registry.versions(subject)]
            try:
                problem = _incompatible(schema, [parse(text) for text in texts], schema.compatibility)
            except SchemaRefused as error:
                problem = f"Subject {subject} has a version that is refused: {error}"
            verdicts.append(Verdict(schema.name, subject, len(texts), problem))
    return verdicts


def _incompatible(schema: AvroSchema, past: Sequence[AvroSchema], level: str) -> str:
    try:
        check_versions(schema, past, level)
    except IncompatibleSchema as error:
        return str(error)
    return ""


def register(
    catalogue: SchemaCatalogue, registry: SchemaRegistry, topic: str, records: Iterable[str]
) -> dict[str, int]:
    """Register records for a topic and hold their subjects to the contracts' levels: subject -> id.

    Raises IncompatibleSchema before the first that would break others, SchemaUnavailable.
    """
    ids: dict[str, int] = {}
    for name in records:
        schema, subject = catalogue.present[name], subject_of(topic, name)
        check_versions(schema, [parse(version.text) for version in registry.versions(subject)], schema.compatibility)
        ids[subject] = registry.register(subject, schema)
        if registry.compatibility(subject) != schema.compatibility:
            registry.set_compatibility(subject, schema.compatibility)
    return ids


def freeze(folder: Path) -> list[Path]:
    """Add each compatible contract of a folder that differs from its newest committed version; gives the new
    files.

    Raises IncompatibleSchema, with nothing written, when one does not fit its committed versions.
    """
    new: list[tuple[Path, str]] = []
    for path in sorted(folder.glob("*.avsc")):
        schema = read_schema(path)
        past = [read_schema(file) for file in history_files(folder, schema.name)]
        check_versions(schema, past, schema.compatibility)
        if not past or contract_of(past[-1].definition) != contract_of(schema.definition):
            target = folder / HISTORY / schema.name.rpartition(".")[2] / f"{len(past) + 1}.avsc"
            new.append((target, path.read_text(encoding="utf-8")))
    for target, text in new:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return [target for target, _ in new]


def contract_of(definition: Any) -> Any:
    """A schema without what is for people (`doc`) or policy (`compatibility`): what two versions can differ
    in.
    """
    if isinstance(definition, dict):
        kept = {key: value for key, value in definition.items() if key not in ("doc", "compatibility")}
        return {key: value if key == "default" else contract_of(value) for key, value in kept.items()}
    if isinstance(definition, list):
        return [contract_of(part) for part in definition]
    return definition
