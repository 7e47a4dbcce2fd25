"""The records of the control topic: what is written is read back, and garbage is named, not followed."""

from __future__ import annotations

import json
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.inspect.control import read_switches, write_switch
from pipeline.memory.cluster import connect
from pipeline.model.cluster import TopicSpec
from pipeline.model.control import (
    ControlRecordError,
    Pause,
    Release,
    Replay,
    Skip,
    Switch,
    Switches,
    decode,
    encode,
    record_key,
)
from pipeline.model.errors import TopologyError

_text = st.text(max_size=12)
_number = st.integers(0, 2**40)
_keys = st.none() | st.binary(max_size=8)
_switches: st.SearchStrategy[Switch] = st.one_of(
    st.builds(Pause, _text, _text, _text, _number),
    st.builds(Skip, _text, _text, _number, _number, _keys, _text, _text, _number),
    st.builds(Release, _text, _text, _number, _keys, _number, _text, _text, _number),
    st.builds(Replay, _text, _text, _text, _text, _text, _number),
)


@given(_switches)
def test_what_is_written_is_read_back(switch: Switch) -> None:
    key, value = encode(switch)
    assert decode(value) == switch
    assert key.decode() == record_key(switch)


@given(_switches, _switches)
def test_different_switches_have_different_keys(one: Switch, other: Switch) -> None:
    def place(switch: Switch) -> tuple[object, ...]:
        if isinstance(switch, Pause):
            return ("pause", switch.group)
        if isinstance(switch, Replay):
            return ("replay", switch.plan_id)
        tail = switch.origin_offset if isinstance(switch, Skip) else switch.key
        return (type(switch), switch.group, switch.topic, switch.partition, tail)

    assert (record_key(one) == record_key(other)) is (place(one) == place(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Skip("g", "a", 1, 2), Skip("g/a", "1", 2, 2)),
        (Skip("g/a", "1", 2, 3), Skip("g", "a/1", 2, 3)),
        (Release("g", "t", 0, None, 1), Release("g", "t", 0, b"", 1)),
        (Release("g", "t", 0, None, 1), Release("g", "t", 0, b"-null", 1)),
        (Release("g", "t/0", 0, b"k", 1), Release("g", "t", 0, b"0/=k", 1)),
        (Pause("a/b"), Pause("a%2Fb")),
    ],
)
def test_names_that_look_alike_have_different_keys(one: Switch, other: Switch) -> None:
    assert record_key(one) != record_key(other)


@given(st.lists(st.tuples(_switches, st.booleans()), max_size=20))
def test_folding_keeps_the_newest_state_of_each_switch(history: list[tuple[Switch, bool]]) -> None:
    switches, model = Switches(), dict[bytes, Switch]()
    for switch, on in history:
        key, value = encode(switch)
        switches.fold(key, value if on else None)
        if on:
            model[key] = switch
        else:
            model.pop(key, None)
    assert sorted(map(repr, switches)) == sorted(map(repr, model.values()))
    for switch in model.values():
        if isinstance(switch, Pause):
            assert switches.paused(switch.group) == switch
        elif isinstance(switch, Skip):
            assert switches.skips(switch.group, switch.topic, switch.partition)[switch.origin_offset] == switch
        elif isinstance(switch, Replay):
            assert switches.replay(switch.plan_id) == switch
        else:
            assert switches.releases(switch.group, switch.topic, switch.partition)[switch.key] == switch


def test_a_tombstone_undoes_it() -> None:
    switches = Switches()
    for switch in (Pause("g"), Skip("g", "t", 0, 7, b"k"), Release("g", "t", 0, b"k", 9), Replay("rp-1", "paused")):
        key, value = encode(switch)
        switches.fold(key, value)
        assert switches.fold(key, None) == switch
    assert list(switches) == []
    assert switches.paused("g") is None
    assert switches.replay("rp-1") is None
    assert switches.skips("g", "t", 0) == {}
    assert switches.releases("g", "t", 0) == {}


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (b"\xff", "JSON"),
        (b"[" * 100_000, "more|bytes"),
        (b"[" * 60_000, "JSON"),
        (b"7", "object"),
        (b'{"kind":"pause"}', "group"),
        (b'{"kind":1,"group":"g"}', "kind"),
        (b'{"kind":"pause","group":"g","at_ms":"now"}', "at_ms"),
        (b'{"kind":"skip","group":"g","topic":"t","partition":0}', "origin_offset"),
        (b'{"kind":"skip","group":"g","topic":"t","partition":true,"origin_offset":1}', "partition"),
        (b'{"kind":"skip","group":"g","topic":"t","partition":0,"origin_offset":1,"key_base64":"*"}', "key_base64"),
        (b'{"kind":"release","group":"g","topic":"t","partition":0,"up_to_origin":-1}', "up_to_origin"),
    ],
)
def test_garbage_is_named(value: bytes, field: str) -> None:
    with pytest.raises(ControlRecordError, match=field):
        decode(value)


def test_a_kind_of_a_newer_version_is_left_alone() -> None:
    assert decode(json.dumps({"kind": "drain", "group": "g"}).encode()) is None
    switches = Switches()
    assert switches.fold(b"drain/g", b'{"kind":"drain","group":"g"}') is None
    assert list(switches) == []


def test_a_record_under_the_wrong_key_is_refused() -> None:
    with pytest.raises(ControlRecordError, match="does not fit"):
        Switches().fold(b"pause/other", encode(Pause("g"))[1])


def test_a_switch_is_on_record_when_it_is_written_and_gone_when_it_is_turned_off() -> None:
    cluster = connect(f"memory://{uuid.uuid4().hex}")
    with pytest.raises(TopologyError, match="pipeline topics apply"):
        write_switch(cluster, "control", Pause("g"), True)
    cluster.admin().create_topics([TopicSpec("control", 1)])
    write_switch(cluster, "control", Pause("g", "ann"), True)
    write_switch(cluster, "control", Pause("other"), True)
    assert read_switches(cluster, "control").paused("g") == Pause("g", "ann")
    write_switch(cluster, "control", Pause("g"), False)
    assert list(read_switches(cluster, "control")) == [Pause("other")]
