"""The Python classes and the .avsc contracts say the same, and building a value checks it."""

from __future__ import annotations

import copy
import pickle
import types
import typing
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from pipeline.codec.catalogue import product_catalogue, read_schema, schemas_directory
from pipeline.codec.jobs import INBOX_RECORDS, STORE_RECORDS
from pipeline.codec.reading import builder
from pipeline.model.errors import ConfigurationError
from pipeline.model.events import (
    EVENT_TYPES,
    Message,
    ModelCall,
    RunStarted,
    ToolCall,
    ToolResult,
    TypedValue,
    event_type,
)
from pipeline.model.views import VALUE_TYPES

COMMON = ("event_id", "run_id", "sequence", "occurred_at", "agent", "tenant", "parent_id", "step")
INT_MAX = 2**31 - 1


def fields(**more: Any) -> dict[str, Any]:
    base = {
        "event_id": "e1",
        "run_id": "r1",
        "sequence": 0,
        "occurred_at": 1_700_000_000_000,
        "agent": "a",
        "tenant": "t",
    }
    return base | more


def avro_type(node: Any) -> Any:
    """A field's Avro type as a plain value to compare: ('null', ...) for a union, ('enum', symbols) and so
    on.
    """
    if isinstance(node, list):
        return tuple(avro_type(branch) for branch in node)
    if isinstance(node, dict):
        if node["type"] == "enum":
            return ("enum", tuple(node["symbols"]))
        if node["type"] == "map":
            return ("map", avro_type(node["values"]))
        if node["type"] in ("array", "record", "fixed"):
            raise AssertionError(f"this test must learn {node['type']}")
        return node["type"]
    return node


def python_type(annotation: Any, metadata: list[Any]) -> Any:
    """The Avro type a pydantic field stands for, in the same form."""
    origin = get_origin(annotation)
    if origin is typing.Annotated:
        base, *extra = get_args(annotation)
        flat: list[Any] = []
        for item in extra:
            flat += item.metadata if isinstance(item, FieldInfo) else [item]
        return python_type(base, flat)
    if origin in (types.UnionType, typing.Union):
        branches = [python_type(arg, []) for arg in get_args(annotation) if arg is not type(None)]
        return ("null", *branches)
    if origin is Literal:
        return ("enum", get_args(annotation))
    if origin is dict:
        assert get_args(annotation)[0] is str
        return ("map", python_type(get_args(annotation)[1], []))
    if annotation is int:
        ceilings = [item.le for item in metadata if hasattr(item, "le")]
        assert ceilings, "an int field needs a bound that its Avro type can hold"
        return "int" if max(ceilings) <= INT_MAX else "long"
    return {str: "string", float: "double", bool: "boolean", bytes: "bytes"}[annotation]


def test_every_contract_has_a_class_and_every_class_a_contract() -> None:
    jobs = {*INBOX_RECORDS, *STORE_RECORDS}
    assert set(product_catalogue().present) - jobs == set(VALUE_TYPES)
    files = {path.stem: read_schema(path).name for path in schemas_directory().glob("*.avsc")}
    assert {name: f"agent.{'jobs' if f'agent.jobs.{name}' in jobs else 'run'}.{name}" for name in files} == files


@pytest.mark.parametrize("name", sorted(VALUE_TYPES))
def test_class_and_contract_agree_on_every_field(name: str) -> None:
    definition = product_catalogue().present[name].definition
    contract = {member["name"]: member for member in definition["fields"]}
    model = VALUE_TYPES[name].model_fields
    assert set(contract) == set(model)
    for field_name, member in contract.items():
        field = model[field_name]
        assert python_type(field.annotation, list(field.metadata)) == avro_type(member["type"]), field_name
        assert field.is_required() == ("default" not in member), field_name
        if "default" in member:
            assert field.get_default(call_default_factory=True) == member["default"], field_name


@pytest.mark.parametrize("name", sorted(VALUE_TYPES))
def test_contracts_keep_the_rules_of_the_house(name: str) -> None:
    definition = product_catalogue().present[name].definition
    assert definition["doc"]
    assert definition["compatibility"] == "FULL_TRANSITIVE"
    assert definition["namespace"] == "agent.run"
    for member in definition["fields"]:
        assert member["doc"], member["name"]
        nodes = member["type"] if isinstance(member["type"], list) else [member["type"]]
        if isinstance(member["type"], list):
            assert nodes[0] == "null"
            assert member["default"] is None
            assert len(nodes) == 2
        for node in nodes:
            if isinstance(node, dict) and node["type"] == "enum":
                assert node["symbols"][0] == "UNKNOWN" == node["default"]
                assert node["doc"]
                assert member.get("default") == "UNKNOWN"


@pytest.mark.parametrize("name", sorted(EVENT_TYPES))
def test_run_events_share_their_first_fields(name: str) -> None:
    definition = product_catalogue().present[name].definition
    assert tuple(member["name"] for member in definition["fields"][: len(COMMON)]) == COMMON
    reference = product_catalogue().present["agent.run.Message"].definition["fields"][: len(COMMON)]
    assert definition["fields"][: len(COMMON)] == reference


def test_personal_and_secret_fields_are_tagged() -> None:
    tags = {
        (name.rpartition(".")[2], member["name"])
        for name, schema in product_catalogue().present.items()
        for member in schema.definition["fields"]
        if member.get("pii")
    }
    for tagged in (
        ("Message", "content"),
        ("ModelCall", "content"),
        ("ToolCall", "arguments"),
        ("ToolResult", "content"),
        ("RunStarted", "input"),
        ("RunCompleted", "output"),
    ):
        assert tagged in tags


def test_building_refuses_what_is_unknown_missing_or_wrong() -> None:
    for wrong, field in (
        (fields(tool="t", call_id="c", argumentz="{}"), "argumentz"),
        (fields(tool="t", arguments="{}"), "call_id"),
        (fields(tool=None, call_id="c"), "tool"),
        (fields(tool="t", call_id="c", arguments="{}", sequence=-1), "sequence"),
        (fields(tool="t", call_id="c", arguments="{}", sequence=2**63), "sequence"),
        (fields(tool="t", call_id="c", arguments="{}", run_id=""), "run_id"),
    ):
        with pytest.raises(ValidationError) as caught:
            ToolCall(**wrong)
        assert field in str(caught.value)


def test_reading_leaves_out_what_a_newer_writer_added() -> None:
    event = ToolCall.read(fields(tool="t", call_id="c", arguments="{}", from_the_future=1))
    assert event == ToolCall(**fields(tool="t", call_id="c", arguments="{}"))


def test_values_are_frozen() -> None:
    event = Message(**fields(role="USER", content="hi"))
    with pytest.raises(ValidationError):
        event.content = "other"


def test_times_are_milliseconds_and_take_aware_datetimes() -> None:
    moment = datetime(2026, 1, 31, 12, 0, 0, 123_000, tzinfo=timezone(timedelta(hours=2)))
    event = Message(**fields(role="USER", content="", occurred_at=moment))
    assert event.occurred_at == 1_769_853_600_123
    assert event.occurred == moment
    assert event.occurred.tzinfo is UTC
    iso = Message(**fields(role="USER", content="", occurred_at="2026-01-31T10:00:00.123Z"))
    assert iso.occurred_at == event.occurred_at
    for naive in (datetime(2026, 1, 31), "2026-01-31T10:00:00", "yesterday"):
        with pytest.raises(ValidationError, match="occurred_at"):
            Message(**fields(role="USER", content="", occurred_at=naive))


def test_event_type_by_either_name() -> None:
    assert event_type("ModelCall") is ModelCall is event_type("agent.run.ModelCall")
    with pytest.raises(ConfigurationError, match=r"ModelCal.*RunStarted"):
        event_type("ModelCal")


@pytest.mark.parametrize("kind", [ToolResult, RunStarted])
def test_a_value_built_without_validation_is_like_one_built_with_it(kind: type[TypedValue]) -> None:
    extra = {"tool": "t", "call_id": "c"} if kind is ToolResult else {"labels": {"a": "b"}}
    checked = kind(**fields(**extra))
    quick = builder(kind)(checked.model_dump())
    assert quick == checked
    assert type(quick) is type(checked)
    assert quick.model_dump_json() == checked.model_dump_json()
    assert repr(quick) == repr(checked)
    assert pickle.loads(pickle.dumps(quick)) == checked == copy.deepcopy(quick)
    changed = quick.model_copy(update={"agent": "other"})
    assert changed != quick
    assert quick == checked
    with pytest.raises(ValidationError):
        quick.agent = "x"  # type: ignore[attr-defined]
