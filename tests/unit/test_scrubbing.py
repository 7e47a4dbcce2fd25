"""Masking: secrets by shape, tagged fields by contract, and values of an event wherever an error text quotes them."""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.codec import product_catalogue
from pipeline.codec.schema import parse
from pipeline.codec.scrub import scrub, tagged_texts, tags_of
from pipeline.codec.verdict import contract_of
from pipeline.emit.scrubbing import EventScrubber, tagged_fields
from pipeline.model.errors import ConfigurationError
from pipeline.model.events import Message, RunStarted, ToolCall
from pipeline.model.scrubbing import PII, SECRET, TEXT_MAX, ScrubPolicy, Sensitive, mask
from pipeline.model.secret_shapes import _SHAPES, MASK, _may_hold, mask_secrets, names_secret
from pipeline.model.views import VALUE_TYPES
from pipeline.settings import Settings

BASE: dict[str, Any] = {"event_id": "e", "run_id": "r", "sequence": 0, "occurred_at": 1, "agent": "a", "tenant": "t"}
KEY = "sk-proj-" + "a1B2" * 8
SECRETS = {
    "aws key id": "AKIAIOSFODNN7EXAMPLE",
    "openai": KEY,
    "stripe": "sk_" + "live_4eC39HqLyjWDarjtT1zdp7dc",
    "github": "ghp_" + "a1" * 18,
    "github new": "github_pat_" + "a1" * 20,
    "gitlab": "glpat-" + "a1" * 10,
    "slack": "xoxb-" + "12345678901-abc",
    "google": "AIza" + "a" * 35,
    "hugging face": "hf_" + "a1" * 17,
    "npm": "npm_" + "a1" * 18,
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVP",
    "pem": "-----BEGIN RSA PRIVATE KEY-----\nMIIEow+/=\n-----END RSA PRIVATE KEY-----",
    "pem cut short": "-----BEGIN PRIVATE KEY-----\nMIIEow",
}
IN_CONTEXT = {
    "Authorization: Bearer abcdef0123456789abcdef": "Authorization: Bearer [secret]",
    "authorization: basic dXNlcjpwYXNz": "authorization: basic [secret]",
    "postgres://bob:hunter2@db/x": "postgres://bob:[secret]@db/x",
    '{"password": "hunter2", "user": "bob"}': '{"password": "[secret]", "user": "bob"}',
    '{"password": "a\\"b c"}': '{"password": "[secret]"}',
    '"{\\"api_key\\": \\"x y\\"}"': '"{\\"api_key\\": \\"[secret]\\"}"',
    "GET /x?api_key=abcd1234&page=2": "GET /x?api_key=[secret]&page=2",
    "export AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG": "export AWS_SECRET_ACCESS_KEY=[secret]",
}
HARMLESS = [
    "bearer responsibilities are many",
    "Basic understanding of the password policy",
    "risk-averse-investors-everywhere",
    "password = getpass.getpass()",
    "the key: a token of gratitude",
    "task-oriented",
    "http://example.com/a:b@c",
    "sk-learn",
    '{"input_tokens": 5, "next": "page"}',
    "AKIA",
    "eyJ.eyJ",
    "-----BEGIN CERTIFICATE-----",
]


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
@pytest.mark.parametrize("around", ["{}", "call failed for {}: 401", '{{"note": "{}"}}', "a\n{}\nb"])
def test_secrets_are_known_by_their_shape(secret: str, around: str) -> None:
    assert mask_secrets(around.format(secret)) == around.format("[secret]") or secret.endswith("MIIEow")
    assert secret[-8:] not in mask_secrets(around.format(secret))


@pytest.mark.parametrize(("text", "masked"), IN_CONTEXT.items())
def test_secrets_are_known_by_what_stands_before_them(text: str, masked: str) -> None:
    assert mask_secrets(text) == masked
    assert mask_secrets(masked) == masked


@pytest.mark.parametrize("text", HARMLESS)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert mask_secrets(text) == text


LONG = "Ab1" * 30_000
IN_FULL = {
    "json": ('{"password": "', LONG, '", "user": "bob"}'),
    "json, escaped": ('{"password": "', 'a\\"b\\n' * 10_000, '", "user": "bob"}'),
    "json in json": ('{"x": "{\\"password\\": \\"', LONG, '\\", \\"user\\": \\"bob\\"}"}'),
    "name": ("API_KEY=", LONG, " page=2"),
    "name, quoted": ("password='", LONG, "' x"),
    "bearer": ("Authorization: Bearer ", LONG + "==", "\nx"),
    "bearer, letters first": ("Authorization: Bearer ", "a" * 1_000 + "1", "\nx"),
    "basic": ("Authorization: Basic ", LONG + "==", "\nx"),
    "url": ("postgres://bob:", LONG, "@db/x"),
    "url, a long user": ("postgres://" + "bob" * 100 + ":", "hunter2", "@db/x"),
    "jwt": ("token ", f"eyJ{LONG}.eyJ{LONG}.{LONG}", " x"),
    "jwt, short": ("token ", f"eyJ{LONG}.eyJhbGciOiJIUzI1NiJ9.{LONG}", " x"),
    "openai": ("key ", f"sk-proj-{LONG}", " x"),
    "openai, letters first": ("key ", "sk-" + "a" * 1_000 + "1", " x"),
    "gitlab": ("key ", f"glpat-{LONG}", " x"),
    "slack": ("key ", f"xoxb-{LONG}", " x"),
    "stripe": ("key ", f"sk_test_{LONG}", " x"),
    "github": ("key ", f"ghp_{LONG}", " x"),
    "hugging face": ("key ", f"hf_{LONG}", " x"),
    "pem": ("key ", f"-----BEGIN PRIVATE KEY-----\n{LONG}\n-----END PRIVATE KEY-----", " x"),
}


@pytest.mark.parametrize(("before", "secret", "after"), IN_FULL.values(), ids=IN_FULL)
def test_a_secret_is_masked_whole_however_long_it_is(before: str, secret: str, after: str) -> None:
    """Each shape had a greatest length: the rest of a longer one stood there, or all of it where something had to follow."""
    masked = mask_secrets(before + secret + after)
    assert masked.replace("\n[secret]", "[secret]") == f"{before}[secret]{after}"


def test_a_key_that_was_cut_short_is_masked_in_a_long_text() -> None:
    text = (
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\nTop4Secret/+= (the rest is missing). "
        + "log line. " * 5_000
    )
    masked = mask_secrets(text)
    assert "Top4" not in masked
    assert masked.endswith("(the rest is missing). " + "log line. " * 5_000)


@pytest.mark.parametrize("escapes", [1, 2], ids=["a text in JSON", "a text in JSON in JSON"])
@pytest.mark.parametrize("secret", ['hun"ter2', "hun\\ter2", "hun\nter2\\", '"', "\\"])
def test_a_password_in_json_in_json_is_masked_to_its_own_end(secret: str, escapes: int) -> None:
    def inside(value: str) -> str:
        text = json.dumps({"password": value, "user": "bob"})
        for _ in range(escapes):
            text = json.dumps(text)
        return text

    assert mask_secrets(inside(secret)) == inside("[secret]")


@pytest.mark.parametrize("secret", [*SECRETS.values(), *IN_CONTEXT], ids=str)
def test_a_masked_json_document_is_still_one(secret: str) -> None:
    document = json.dumps({"a": secret, "b": [{"password": secret}], "c": 1})
    masked = json.loads(mask_secrets(document))
    assert masked["b"][0]["password"] == "[secret]"
    assert masked["c"] == 1
    json.loads(json.loads(mask_secrets(json.dumps(document))))


@pytest.mark.parametrize(
    "unit",
    [
        "-----BEGIN PRIVATE KEY-----",
        "eyJ-",
        "eyJaaaaaaaaa.",
        "bearer ",
        '"password" : "',
        "sk-",
        "a_",
        "password=",
        "a://b:",
        '\\"api_key',
        "authorization basic ",
        "gh",
        "_key",
        '\\\\\\"',
        "password=(",
        "bearer a",
        "a://b:c",
        '"password":"\\n',
        '\\"password\\":\\"\\\\n',
    ],
)
def test_masking_takes_linear_time(unit: str) -> None:
    text = unit * (300_000 // len(unit))
    began = time.process_time()
    mask_secrets(text)
    mask_secrets(text + "(")
    Sensitive([(PII, text), (PII, unit * 20)]).scrub(text)
    assert time.process_time() - began < 5, "300 kB"


# -- values of an event in error texts


@pytest.mark.parametrize(
    "write",
    [
        str,
        repr,
        ascii,
        json.dumps,
        quote,
        lambda v: f"bad value {v!r} at 3",
        lambda v: v[:20] + "...",
        lambda v: "..." + v[-20:],
        lambda v: repr(v)[:25] + "..." + repr(v)[-25:],
        lambda v: v + v,
    ],
)
@pytest.mark.parametrize(
    "value",
    [
        "Jane Doe lives at 5 Elm Street, ring twice",
        "two\nlines and a \"quote\" and 'another'",
        "Zoë 😀 wrote this long text, really",
    ],
)
def test_a_value_is_found_however_it_is_quoted(write: Any, value: str) -> None:
    masked = Sensitive([(PII, value)]).scrub(f"ValueError: {write(value)}")
    assert "[pii]" in masked
    for word in ("Jane", "Elm", "twice", "lines", "another", "wrote", "really"):
        assert word not in masked, masked


def test_parts_of_a_value_that_tell_who_it_is_are_found() -> None:
    arguments = json.dumps({"user": {"name": "Jane Doe", "id": 77441}, "card": "4111111111111111", "n": 3})
    content = "Hi, I am jane@example.org, call 555-123-4567."
    sensitive = Sensitive([(PII, arguments), (PII, content), (SECRET, "tok3n")])
    for text in (
        "no user Jane Doe",
        "card 4111111111111111 refused",
        "bad address <jane@example.org>",
        "dialled 555-123-4567",
        "401: tok3n",
    ):
        masked = sensitive.scrub(text)
        assert "[pii]" in masked or "[secret]" in masked, text
    assert sensitive.scrub("3 attempts") == "3 attempts"


def test_short_values_are_found_as_words_only() -> None:
    sensitive = Sensitive([(PII, "bob"), (PII, "no")])
    assert sensitive.scrub("bob said no in bobsleigh") == "[pii] said no in bobsleigh"


@given(
    st.text(st.characters(exclude_categories=("Cs",)), min_size=13, max_size=60),
    st.text(max_size=60),
    st.text(max_size=60),
)
def test_no_whole_value_survives(value: str, before: str, after: str) -> None:
    masked = Sensitive([(PII, value)]).scrub(before + value + after)
    assert value not in masked


def test_many_values_are_all_found_and_too_many_leave_nothing() -> None:
    many = Sensitive((PII, f"person number {n}") for n in range(2_000))
    masked = many.scrub(str([f"person number {n}" for n in range(0, 2_000, 100)]))
    assert "person" not in masked
    assert Sensitive((PII, f"p{n}x") for n in range(30_000)).scrub("nothing in it").startswith("(left out")


def test_of_a_very_long_text_no_half_value_is_left_at_the_cut() -> None:
    value = "Jane Doe " + "abcdefghij" * 30
    for shift in range(0, 400, 7):
        text = "x" * (TEXT_MAX // 2 - shift) + value + "y" * TEXT_MAX + value + "z" * (TEXT_MAX // 2 - shift)
        masked = Sensitive([(PII, value)]).scrub(text)
        assert len(masked) <= TEXT_MAX + 10
        assert "Jane" not in masked
        assert "abcd" not in masked


# -- values by their contract

NESTED = parse(
    {
        "type": "record",
        "name": "x.Order",
        "fields": [
            {"name": "id", "type": "string"},
            {
                "name": "who",
                "type": {
                    "type": "record",
                    "name": "Who",
                    "fields": [
                        {"name": "name", "type": "string", "tags": ["pii"]},
                        {"name": "age", "type": ["null", "int"], "pii": True},
                        {"name": "country", "type": "string"},
                    ],
                },
            },
            {"name": "others", "type": {"type": "array", "items": "Who"}},
            {"name": "by_role", "type": {"type": "map", "values": ["null", "Who"]}},
            {"name": "key", "type": "bytes", "secret": True},
            {"name": "lines", "type": {"type": "array", "items": "string"}, "confluent:tags": ["PII", "GDPR"]},
            {
                "name": "either",
                "type": [
                    "null",
                    "Who",
                    {"type": "record", "name": "Firm", "fields": [{"name": "vat", "type": "string", "pii": True}]},
                ],
            },
            {"name": "headers", "type": {"type": "map", "values": "string"}},
            {"name": "phones", "type": {"type": "map", "values": "string"}, "pii": True},
        ],
    }
)
WHO = {"name": "Jane", "age": 40, "country": "NL"}
HIDDEN = {"name": "[pii]", "age": "[pii]", "country": "NL"}
ORDER = {
    "id": "o-1",
    "who": WHO,
    "others": [WHO, {**WHO, "age": None}],
    "by_role": {"a": WHO, "b": None},
    "key": b"\x01",
    "lines": ["p", "q"],
    "either": ("x.Firm", {"vat": "NL1"}),
    "headers": {"authorization": "x", "accept": KEY, "n": "1"},
    "phones": {"home": "1"},
}


def test_tagged_fields_are_masked_nested_in_arrays_maps_and_unions() -> None:
    before = repr(ORDER)
    assert scrub(ORDER, NESTED) == {
        "id": "o-1",
        "who": HIDDEN,
        "others": [HIDDEN, {**HIDDEN, "age": None}],
        "by_role": {"a": HIDDEN, "b": None},
        "key": "[secret]",
        "lines": ["[pii]", "[pii]"],
        "either": ("x.Firm", {"vat": "[pii]"}),
        "headers": {"authorization": "[secret]", "accept": "[secret]", "n": "1"},
        "phones": "[pii]",
    }
    assert repr(ORDER) == before, "the value itself stays"


def test_only_the_tags_that_are_asked_for() -> None:
    assert scrub(ORDER, NESTED, frozenset())["who"] == WHO
    only_secrets = scrub(ORDER, NESTED, frozenset({SECRET}))
    assert (only_secrets["who"], only_secrets["key"]) == (WHO, "[secret]")
    only_personal = scrub(ORDER, NESTED, frozenset({PII}))
    assert (only_personal["who"], only_personal["key"], only_personal["headers"]) == (HIDDEN, b"\x01", ORDER["headers"])


def test_without_a_schema_secrets_are_masked() -> None:
    value = {"api_key": "x", "deep": [{"password": "p", "note": f"use {KEY}"}], "n": 1, "none": None}
    assert scrub(value, None) == {
        "api_key": "[secret]",
        "deep": [{"password": "[secret]", "note": "use [secret]"}],
        "n": 1,
        "none": None,
    }
    deep: Any = "x"
    for _ in range(5_000):
        deep = [deep]
    assert "too deep" in json.dumps(scrub(deep, None))
    assert scrub(b"bytes", None) == b"bytes"


def test_tagged_texts_are_collected() -> None:
    found = list(tagged_texts(ORDER, NESTED))
    assert {text for tag, text in found if tag == PII} == {"Jane", "40", "p", "q", "NL1", "1", "home"}
    assert (SECRET, "\\x01") in found
    assert "NL" not in {text for _, text in found}


def test_tags_are_part_of_the_contract_and_of_the_class() -> None:
    """Classes and contracts agree, both ways; a tag that changes has to be committed to the history."""
    for name, schema in product_catalogue().present.items():
        in_contract = {m["name"]: tags_of(m) for m in schema.definition["fields"] if tags_of(m)}
        if name not in VALUE_TYPES:  # contracts of jobs have no such class: they are read into plain dataclasses
            assert name.startswith("agent.jobs."), name
            continue
        in_class = {field: frozenset(tag.name for tag in tags) for field, tags in tagged_fields(VALUE_TYPES[name])}
        assert in_contract == in_class, name
        assert {m["name"]: tags_of(m) for m in schema.node["fields"] if tags_of(m)} == in_contract, "lost by parsing"
    plain = {"type": "record", "name": "R", "fields": [{"name": "a", "type": "string"}]}
    tagged = {"type": "record", "name": "R", "fields": [{"name": "a", "type": "string", "tags": ["pii"]}]}
    assert contract_of(plain) != contract_of(tagged)
    assert json.loads(parse(tagged).text) == tagged, "what the registry gets"


# -- before publishing


def test_secrets_are_masked_before_publishing_and_personal_data_where_that_is_set() -> None:
    message = Message(**BASE, role="USER", content=f"my key is {KEY}", name="Jane")
    assert EventScrubber(ScrubPolicy())(message) == message.model_copy(update={"content": "my key is [secret]"})
    assert EventScrubber(ScrubPolicy.of("off"))(message) is message
    hidden = EventScrubber(ScrubPolicy.of("pii, secret"))(message)
    assert (hidden.content, hidden.name, hidden.event_id) == ("[pii]", "[pii]", "e")
    only_secrets = EventScrubber(ScrubPolicy.of("secret"))(message)
    assert (only_secrets.content, only_secrets.name) == ("my key is [secret]", "Jane")
    nameless = EventScrubber(ScrubPolicy.of("pii"))(Message(**BASE, role="USER", content="hi"))
    assert (nameless.content, nameless.name) == ("[pii]", None)
    plain = Message(**BASE, role="USER", content="hello")
    assert EventScrubber(ScrubPolicy())(plain) is plain


def test_masked_arguments_of_a_tool_are_still_json() -> None:
    call = ToolCall(
        **BASE, tool="http", call_id="c", arguments=json.dumps({"password": "hunter2", "url": "https://a:b@c/d"})
    )
    assert json.loads(EventScrubber(ScrubPolicy())(call).arguments) == {
        "password": "[secret]",
        "url": "https://a:[secret]@c/d",
    }
    assert json.loads(EventScrubber(ScrubPolicy.of("pii"))(call).arguments) == "[pii]"
    assert json.loads(EventScrubber(ScrubPolicy.of("pii,secret"))(call).arguments) == "[secret]"


def test_labels_of_a_run_are_looked_at_too() -> None:
    started = RunStarted(**BASE, labels={"api_key": "abc", "team": "billing", "note": KEY})
    assert EventScrubber(ScrubPolicy())(started).labels == {
        "api_key": "[secret]",
        "team": "billing",
        "note": "[secret]",
    }


def test_the_setting_is_checked() -> None:
    assert ScrubPolicy.of(Settings(scrub="pii,secret").scrub).tags == {PII, SECRET}
    assert ScrubPolicy.of(Settings().scrub) == ScrubPolicy(frozenset(), shapes=True)
    assert ScrubPolicy.of(Settings(scrub="off").scrub) == ScrubPolicy(frozenset(), shapes=False)
    with pytest.raises(ConfigurationError, match="scrub='pii;secret'"):
        ScrubPolicy.of("pii;secret")
    with pytest.raises(ValueError, match="scrub"):
        Settings(scrub="all")
    assert mask(SECRET) == MASK
    assert names_secret("X-Api-Key")
    assert names_secret("DB_PASSWORD")
    assert not names_secret("input_tokens")
    assert not names_secret("keyboard")


def test_the_quick_look_sees_every_hint() -> None:
    """A hint that only the loop knows would never be reached."""
    for needed, shapes in _SHAPES:
        for shape in shapes:
            for hint in shape.hints:
                assert _may_hold(f"a {hint if needed in hint else needed + hint} z"), hint
