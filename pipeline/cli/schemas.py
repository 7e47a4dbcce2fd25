"""`pipeline schemas`: check the Avro contracts, register them for a topic, list them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.access import real, settings
from pipeline.cli.output import Column, emit_json, line, note, table
from pipeline.model.errors import ConfigurationError, SchemaUnavailable

if TYPE_CHECKING:
    from pipeline.codec.catalogue import SchemaCatalogue
    from pipeline.codec.registry import SchemaRegistry

app = typer.Typer(help="Check, register and list the event schemas.", no_args_is_help=True)

Registry = Annotated[str, typer.Option("--registry", help="URL of a registry; PIPELINE_REGISTRY when not given.")]
Broker = Annotated[str, typer.Option("--broker", help="Bootstrap address; the cluster keeps the ids itself.")]
Folders = Annotated[
    list[Path] | None, typer.Option("--schemas", help="A folder with further .avsc files; may be repeated.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")]


@app.command()
def check(
    registry: Registry = "",
    broker: Broker = "",
    schemas: Folders = None,
    freeze: Annotated[
        bool, typer.Option("--freeze", help="Add changed, compatible contracts to the committed history.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare each contract with all its committed versions, and with the registry when one is given and
    answers.

    Exit code 1 when one would break readers or writers.

    Example: pipeline schemas check --registry http://localhost:8081
    """
    from pipeline.codec import verdict
    from pipeline.codec.catalogue import schemas_directory

    added = (
        [str(path) for folder in schemas or [schemas_directory()] for path in verdict.freeze(folder)] if freeze else []
    )
    catalogue = _catalogue(schemas)
    verdicts = verdict.check_history(catalogue)
    reached = "not asked"
    if _asked(registry, broker):
        try:
            with _open(registry, broker, catalogue) as found:
                verdicts += verdict.check_registry(catalogue, found)
            reached = "checked"
        except SchemaUnavailable as error:
            reached = f"not reached: {error}"
            note(str(error))
    problems = [each for each in verdicts if each.problem]
    if as_json:
        rows = [
            {"record": v.record, "against": v.against, "versions": v.versions, "problem": v.problem or None}
            for v in verdicts
        ]
        emit_json({"ok": not problems, "registry": reached, "added": added, "checks": rows})
    else:
        for path in added:
            line(f"added {path}", "green")
        columns: list[Column | str] = ["record", "against", Column("versions", right=True), "problem"]
        table(columns, [(v.record, v.against, v.versions, v.problem or "-") for v in verdicts])
    raise typer.Exit(1 if problems else 0)


@app.command()
def register(
    topic: Annotated[str, typer.Argument(help="Topic whose values they are.")],
    record: Annotated[
        list[str] | None,
        typer.Option("--record", help="Record to register; may be repeated. Default: all run events."),
    ] = None,
    registry: Registry = "",
    broker: Broker = "",
    schemas: Folders = None,
    as_json: Json = False,
) -> None:
    """Register contracts for a topic, one subject per record, each held to its compatibility level.

    Nothing else in the pipeline registers schemas.

    Example: pipeline schemas register agent.run.events --registry http://localhost:8081
    """
    from pipeline.codec import verdict
    from pipeline.model.events import EVENT_TYPES

    catalogue = _catalogue(schemas)
    names = [_full_name(catalogue, name) for name in record or EVENT_TYPES]
    with _open(registry, broker, catalogue) as found:
        ids = verdict.register(catalogue, found, real(topic), names)
    if as_json:
        emit_json({"registered": [{"subject": subject, "id": schema_id} for subject, schema_id in ids.items()]})
    else:
        table(["subject", Column("id", right=True)], list(ids.items()))


@app.command(name="list")
def list_(
    prefix: Annotated[str, typer.Argument(help="With a registry: only subjects that start with this.")] = "",
    registry: Registry = "",
    broker: Broker = "",
    schemas: Folders = None,
    as_json: Json = False,
) -> None:
    """List the contracts of this build or, with a registry, its subjects with versions and ids.

    Example: pipeline schemas list agent.run.events --registry http://localhost:8081
    """
    catalogue = _catalogue(schemas)
    if not _asked(registry, broker):
        local = [
            {
                "record": name,
                "fingerprint": s.fingerprint,
                "fields": len(s.node["fields"]),
                "level": s.compatibility,
            }
            | {"versions": len(catalogue.history.get(name, ()))}
            for name, s in catalogue.present.items()
        ]
        return _show(local, ["record", "fingerprint", "fields", "level", "versions"], as_json)
    with _open(registry, broker, catalogue) as found:
        versions = [version for subject in found.subjects(prefix) for version in found.versions(subject)]
    rows = [{"subject": v.subject, "version": v.version, "id": v.schema_id} for v in versions]
    return _show(rows, ["subject", "version", "id"], as_json)


def _show(rows: list[dict[str, object]], columns: Sequence[str], as_json: bool) -> None:
    if as_json:
        emit_json({"schemas": rows})
    else:
        table(columns, [[row[column] for column in columns] for row in rows])


def _catalogue(folders: list[Path] | None) -> SchemaCatalogue:
    from pipeline.codec.catalogue import SchemaCatalogue

    return SchemaCatalogue.load(folders or ())


def _full_name(catalogue: SchemaCatalogue, name: str) -> str:
    for full in catalogue.present:
        if name in (full, full.rpartition(".")[2]):
            return full
    raise ConfigurationError(f"Record {name} has no contract; `pipeline schemas list` shows those there are.")


def _asked(registry: str, broker: str) -> bool:
    """Whether a registry is named, by an option or PIPELINE_REGISTRY (the broker's default address is no such wish)."""
    return bool(registry or broker or settings().registry)


@contextmanager
def _open(url: str, broker: str, catalogue: SchemaCatalogue) -> Iterator[SchemaRegistry]:
    """The registry by URL (option, then setting), else the one that the cluster keeps itself."""
    chosen = settings()
    url = url or ("" if broker else chosen.registry)
    if url:
        from pipeline.codec.registry_confluent import ConfluentRegistry, RegistryPolicy

        yield ConfluentRegistry(RegistryPolicy(url, chosen.registry_user_info.get_secret_value(), chosen.registry_ca))
        return
    from pipeline.codec.registry_local import SCHEMA_LOG_TOPIC, LocalRegistry
    from pipeline.kafka.schema_log import KafkaSchemaLog
    from pipeline.kafka.settings import shared

    client = {**shared(chosen.client_settings()), "bootstrap.servers": broker or chosen.broker}
    with KafkaSchemaLog(client, chosen.prefix + SCHEMA_LOG_TOPIC) as log:
        yield LocalRegistry(log, catalogue)
