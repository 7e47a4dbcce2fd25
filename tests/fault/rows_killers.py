"""Row 15: records that take down the process that works on them, in the handler or in the decoder."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from pipeline.codec import product_catalogue, wire
from pipeline.codec.registry_confluent import ConfluentRegistry, RegistryPolicy
from pipeline.codec.schema import AvroSchema
from pipeline.codec.verdict import register
from pipeline.kafka.embedded import EmbeddedRegistry
from pipeline.model.events import EVENT_TYPES
from pipeline.settings import Settings
from tests.fault.feed import NUMBER, Value, encoded, values
from tests.fault.reading import read_all
from tests.fault.rows_records import started
from tests.fault.trial import Trial

KILLERS, WORKER_KILLERS = 6, 3
DEATHS = ("exit", "segv", "oom")


def process_killers(trial: Trial) -> None:
    """Row 15: handlers that take their process with them: dead letters after three deaths, with their raw bytes; neighbours go on.
    Without children it is the whole worker that dies, and a supervisor that starts it again. Then bytes that kill a decoder."""
    if trial.plan.kind == "avro":
        _decoder_killers(trial)
        return
    trial.make_topics()
    whole = trial.plan.kind == "async"
    raw = _with_killers(trial, WORKER_KILLERS if whole else KILLERS)
    if whole:
        trial.supervised(2)
    else:
        trial.workers(2)
    trial.begin()
    trial.faults.append(f"{len(raw)} records that end their process (os._exit, SIGSEGV, SIGKILL for want of memory)")
    trial.feed.wait(120 + trial.plan.load_s)
    killers = {origin for origin, sent in trial.feed.sent.items() if sent.number in raw}
    trial.undecodable = killers
    letters = trial.wait("the killers are dead letters", lambda: _letters_of(trial, killers), 180)
    trial.wait("everything has its ending", trial._all_ended, 120)
    for origin, letter in letters.items():
        headers = dict(letter.headers())
        number = trial.feed.sent[origin].number
        if letter.value() != encoded(number, raw[number]) or headers["pl.error.class"] != b"ProcessDied":
            trial.problem(f"the dead letter of {origin} is not the record that ended its processes, byte for byte")
    if whole:
        _worker_deaths(trial)
    # While two kill the same workers, the deaths of one count for what ran beside it.
    allowed = {1, 2, 3} if whole else {3}
    starts = Counter((m.partition, m.offset) for m in trial.tally.update().marks if m.what == "start")
    if not {starts[origin] for origin in killers} <= allowed:
        trial.problem(f"killers were started {[starts[origin] for origin in killers]} times, not 3")


def _with_killers(trial: Trial, count: int) -> dict[int, dict[str, Any]]:
    """Records of the load that end their process, each of a key of its own, evenly among the others."""
    every = trial.plan.records // count
    records = values(trial.plan.seed, trial.plan.records, trial.plan.mix)
    raw: dict[int, dict[str, Any]] = {}
    for number in range(every // 2, trial.plan.records, every):
        raw[number] = {"n": number, "dies": DEATHS[len(raw) % len(DEATHS)]}
        records[number] = (f"killer-{number}", raw[number])
    trial.feed = trial.new_feed(records)
    return raw


def _worker_deaths(trial: Trial) -> None:
    """Every death of a worker may repeat what it had in flight; two of a killer are needed to know it."""
    deaths = trial.live[0].log.read_text(errors="replace").count("worker process ended: starting it again")
    trial.disturb("worker died and started again by its supervisor", deaths)
    trial.deaths += deaths
    if not 2 <= deaths <= 2 * WORKER_KILLERS:
        trial.problem(f"{deaths} workers died of {WORKER_KILLERS} records, not 2 of each")
    trial.wait("a partition is healthy again", lambda: trial.live[0].said("a partition is healthy again"), 90)


def _letters_of(trial: Trial, origins: set[tuple[int, int]]) -> dict[tuple[int, int], Any]:
    """Their dead letters, once all are there."""
    found = {}
    for message in read_all(trial.ground.direct, [trial.scene.lane("dlq")]):
        headers = dict(message.headers())
        place = int(headers["pl.origin.partition"]), int(headers["pl.origin.offset"])
        if place in origins:
            found[place] = message
    return found if len(found) == len(origins) else {}


NESTED = 5_000
"""Levels: where a decoder that calls itself has used up its stack."""
RECURSIVE = {"type": "record", "name": "Node", "fields": [{"name": "next", "type": ["null", "Node"]}]}


def _decoder_killers(trial: Trial) -> None:
    """A schema that contains itself, which a registry accepted, and values that follow it 5,000 levels down."""
    trial.make_topics()
    source = trial.scene.topic()
    with EmbeddedRegistry(mirror=Settings.load().maven_mirror or None) as server:
        registry = ConfluentRegistry(RegistryPolicy(server.url))
        register(product_catalogue(), registry, source, EVENT_TYPES)
        hostile = registry.register(f"{source}-value", AvroSchema("Node", json.dumps(RECURSIVE), "", {}, {}, {}))
        killer = wire.key_of_id(hostile) + b"\x02" * NESTED + b"\x00"
        trial.plan.settings["registry"] = server.url
        codec = trial.scene.app(registry=server.url).codec
        codec.prepare(source)
        records: list[tuple[str, Value]] = []
        for number in range(trial.plan.records):
            value = killer if number % 50 == 7 else codec.encode(started(number), topic=source)
            records.append((f"r{number % 500}", value))
        trial.feed = trial.new_feed(records)
        trial.workers(2)
        trial.begin()
        trial.feed.wait(120 + trial.plan.load_s)
        trial.undecodable = {o for o, sent in trial.feed.sent.items() if records[sent.number][1] is killer}
        trial.faults.append(
            f"{len(trial.undecodable)} records of a schema that contains itself, {NESTED:,} levels deep"
        )
        letters = trial.wait("they are dead letters", lambda: _letters_of(trial, trial.undecodable), 60)
        trial.wait("everything has its ending", trial._all_ended, 60)
    for origin, letter in letters.items():
        headers = dict(letter.headers())
        number = trial.feed.sent[origin].number
        if letter.value() != killer or headers[NUMBER] != str(number).encode() or headers["pl.attempt"] != b"1":
            trial.problem(f"the dead letter of {origin} is not the record as it was, tried once")
        if b"contains itself" not in headers["pl.error.message"]:
            trial.problem(f"the dead letter of {origin} does not say why: {headers['pl.error.message'][:200]!r}")
