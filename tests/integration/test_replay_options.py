"""Every option of `pipeline replay` on real runs: exactly the records that a naive look at all of them chooses, by place."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.model.cluster import GroupMember
from pipeline.replay.forking import FORKED_FROM, forked_id
from pipeline.replay.results import read_results
from tests.integration.harness import ROOT, Scene, until
from tests.integration.option_scene import COPIES, PARTITIONS, STEPPED, Options, Place, Places, Row, iso, where
from tests.integration.replays import read_container
from tests.patience import PATIENCE

pytestmark = pytest.mark.timeout(180)
EVENTS, LANE = ("--topic", "events"), ("--topic", "events", "--group", "g")


@pytest.fixture(scope="module")
def options(kafka: str, real_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Options]:
    name = f"opt.{uuid.uuid4().hex[:10]}"
    folder = tmp_path_factory.mktemp("options")
    with pytest.MonkeyPatch.context() as patch, Scene(kafka, name, folder, partitions=PARTITIONS) as scene:
        patch.syspath_prepend(folder)  # an application for --app is there
        yield Options(scene, real_runs)


# -- what is chosen

Asked = tuple[tuple[str, ...], Callable[[Row], Any]]


@dataclass(frozen=True)
class Marks:
    """Values of the scene that options name: times of two records, an offset of partition 1 after the first of them, two runs."""

    early_ms: int
    late_ms: int
    offset: int
    runs: tuple[str, str]

    @classmethod
    def of(cls, rows: list[Row]) -> Marks:
        times = sorted(row.at_ms for row in rows)
        keys = sorted({row.key for row in rows})
        early_ms, late_ms = times[len(times) // 4], times[3 * len(times) // 4]
        offset = next(row.place[1] for row in rows if row.place[0] == 1 and row.at_ms > early_ms) + 5
        return cls(early_ms, late_ms, offset, (keys[1], keys[-2]))


CHOICES: dict[str, Callable[[Marks], Asked]] = {
    "--from-offset": lambda m: (
        ("--from-offset", "0:5", "--from-offset", "2:17"),
        lambda r: (r.place[0] == 0 and r.place[1] >= 5) or (r.place[0] == 2 and r.place[1] >= 17),
    ),
    "--from-time": lambda m: (("--from-time", iso(m.early_ms)), lambda r: r.at_ms >= m.early_ms),
    "--to-time": lambda m: (("--to-time", iso(m.late_ms)), lambda r: r.at_ms < m.late_ms),
    "--from-time --from-offset": lambda m: (
        ("--from-time", iso(m.early_ms), "--from-offset", f"1:{m.offset}"),
        lambda r: r.at_ms >= m.early_ms and r.place[0] == 1 and r.place[1] >= m.offset,
    ),
    "--key, nothing decoded": lambda m: (
        ("--key", m.runs[0], "--key", m.runs[1], "--decode", "none"),
        lambda r: r.key in m.runs,
    ),
    "--type": lambda m: (
        ("--type", "ToolCall", "--type", "RunFailed"),
        lambda r: r.kind in ("ToolCall", "RunFailed"),
    ),
    "--tenant": lambda m: (("--tenant", "acme"), lambda r: r.value["tenant"] == "acme"),
    "--where on the value": lambda m: (
        ("--where", 'value.tool like "get_*" and value.sequence >= 5'),
        lambda r: str(r.value.get("tool", "")).startswith("get_") and r.value["sequence"] >= 5,
    ),
    "--where or": lambda m: (
        ("--where", f'key == "{m.runs[0]}" or value.role == "USER" and size < 1500'),
        lambda r: (
            r.key == m.runs[0]
            or (r.value.get("role") == "USER" and len(r.message.key()) + len(r.message.value()) < 1_500)
        ),
    ),
    "all together": lambda m: (
        (
            *("--to-time", iso(m.late_ms), "--tenant", "globex", "--type", "ModelCall", "--type", "ToolCall"),
            *("--where", "partition != 1 and not value.sequence < 3"),
        ),
        lambda r: (
            r.at_ms < m.late_ms
            and r.value["tenant"] == "globex"
            and r.kind in ("ModelCall", "ToolCall")
            and r.place[0] != 1
            and r.value["sequence"] >= 3
        ),
    ),
}


@pytest.mark.parametrize("name", CHOICES)
def test_what_an_option_chooses(options: Options, name: str) -> None:
    words, wanted = CHOICES[name](Marks.of(options.rows))
    assert options.chosen(*EVENTS, *words) == where(options.rows, wanted)


def test_last_counts_back_from_now(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    marks = Marks.of(options.rows)
    monkeypatch.setattr("pipeline.cli.replay_planning.now_ms", lambda: marks.early_ms + 7_200_000)
    wanted = where(options.rows, lambda r: r.at_ms >= marks.early_ms)
    assert options.chosen(*EVENTS, "--last", "2h") == wanted
    assert options.plan(*LANE, "--last", "PT2H")["preview"]["selected"] == len(wanted)


def test_limit_takes_the_oldest_of_what_is_chosen(options: Options) -> None:
    rows = sorted((row for row in options.rows if row.value["tenant"] == "globex"), key=lambda r: (r.at_ms, r.place))
    limit = next(n for n in range(len(rows) // 2, len(rows)) if rows[n - 1].at_ms < rows[n].at_ms)  # no tie there
    oldest = {row.place for row in rows[:limit]}
    assert len({partition for partition, _ in oldest}) > 1
    assert options.chosen(*EVENTS, "--tenant", "globex", "--limit", str(limit)) == oldest
    assert options.plan(*LANE, "--tenant", "globex", "--limit", "100000")["preview"]["selected"] == len(rows)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            'error.class == "RateLimit" and attempt >= 1 and value.tenant == "acme"',
            lambda r: r.headers["pl.error.class"] == b"RateLimit" and r.value["tenant"] == "acme",
        ),
        (
            'error.message contains "reading" and origin.partition == 0',
            lambda r: origin(r)[0] == 0 and b"reading" in r.headers["pl.error.message"],
        ),
    ],
    ids=["class and value", "message and origin"],
)  # fmt: skip
def test_dead_letters_by_their_errors_go_back_into_the_lane(
    options: Options, text: str, wanted: Callable[[Row], Any]
) -> None:
    chosen = where(options.letters, wanted)
    letters = {row.place: row for row in options.letters}
    done = options.run("--topic", options.scene.lane("dlq"), "--group", "g", "--where", text)
    copies = options.copies(done["plan"], options.scene.lane("replay"))
    assert sorted(place for place, _ in copies) == sorted(origin(letters[place]) for place in chosen)
    by_key: dict[bytes | None, list[Place]] = defaultdict(list)
    for place, copy in copies:
        by_key[copy.key()].append(place)
    assert all(places == sorted(places) for places in by_key.values())
    assert done["counts"] == {"written": len(chosen)}


def origin(row: Row) -> Place:
    return int(row.headers["pl.origin.partition"] or b""), int(row.headers["pl.origin.offset"] or b"")


def test_decode_says_whether_the_preview_looks_into_values(options: Options) -> None:
    some = options.plan(*LANE, "--tenant", "acme", "--decode", "some")["preview"]
    none = options.plan(*LANE, "--key", Marks.of(options.rows).runs[0], "--decode", "none")["preview"]
    assert 0 < some["checked"] == some["decoded"] == some["valid"]
    assert some["samples"]
    assert (none["checked"], none["decoded"], none["samples"], none["decoded_by_filter"]) == (0, 0, [], 0)
    assert "must be some or none" in options.cli("replay", "plan", *LANE, "--decode", "all", code=2).stderr


# -- parts of runs, and where to


def up_to_step(options: Options, step: int) -> list[Row]:
    """The events of the run with steps, up to its first one of a later step."""
    own = [row for row in options.rows if row.key == STEPPED]
    end = next(n for n, row in enumerate(own) if (row.value["step"] or 0) > step)
    assert 0 < end < len(own)
    return own[:end]


def test_to_step_ends_with_the_step_and_fork_run_writes_it_as_a_new_run(options: Options) -> None:
    expected = up_to_step(options, 2)
    asked = (*EVENTS, "--key", STEPPED, "--to-step", "2")
    assert options.chosen(*asked) == {row.place for row in expected}
    done = options.run(*asked, "--fork-run", "again", "--to-topic", COPIES, "--app", options.app)
    forked = [row for row in options.read(options.scene.topic(COPIES)) if row.key == "again"]
    assert done["counts"] == {"written": len(expected)}
    for old, new in zip(expected, forked, strict=True):
        event_id = forked_id(old.value["event_id"], done["plan"])
        changed = {"run_id": "again", "event_id": event_id}
        if old.kind == "RunStarted":
            changed["parent_run_id"] = STEPPED
        assert new.value == {**old.value, **changed}
        assert (new.kind, new.headers[FORKED_FROM], new.headers["pl.event_id"]) == (
            old.kind,
            STEPPED.encode(),
            event_id.encode(),
        )
    assert [place for place, _ in options.copies(done["plan"], options.scene.topic(COPIES))] == [
        r.place for r in expected
    ]


def test_to_topic_takes_topics_of_the_application_named_and_no_others(options: Options) -> None:
    run, target = Marks.of(options.rows).runs[0], options.scene.topic(COPIES)
    wanted = {row.place: row.message for row in options.rows if row.key == run}
    asked = (*EVENTS, "--key", run, "--to-topic")
    assert "--app MODULE:APP" in options.cli("replay", "plan", *asked, "nowhere", code=2).stderr
    done = options.run(*asked, COPIES, "--app", options.app)
    copies = options.copies(done["plan"], target)
    assert [place for place, _ in copies] == sorted(wanted)
    for place, copy in copies:
        assert (copy.key(), copy.value()) == (wanted[place].key(), wanted[place].value())


def test_to_file_and_from_file(options: Options) -> None:
    file, run = options.scene.folder / "kept.avro", Marks.of(options.rows).runs[1]
    wanted = {row.place: row for row in options.rows if row.kind == "ToolCall"}
    kept = options.run(*EVENTS, "--type", "ToolCall", "--to-file", str(file))
    assert kept["counts"] == {"written": len(wanted)}
    stored = {(record["partition"], record["offset"]): record for record in read_container(file)}
    assert set(stored) == set(wanted)
    for place, record in stored.items():
        row = wanted[place]
        assert record["topic"] == options.scene.topic()
        assert (record["key"], record["value"]) == (row.message.key(), row.message.value())
        assert record["timestamp_ms"] == row.at_ms
        assert {h["name"]: h["value"] for h in record["headers"]} == row.headers
    back = options.run("--from-file", str(file), "--group", "g", "--where", f'key == "{run}" and value.sequence > 4')
    chosen = sorted(where(wanted.values(), lambda r: r.key == run and r.value["sequence"] > 4))
    copies = options.copies(back["plan"], options.scene.lane("replay"))
    assert [place for place, _ in copies] == chosen
    for place, copy in copies:
        assert (copy.key(), copy.value(), copy.partition()) == (stored[place]["key"], stored[place]["value"], place[0])


@pytest.mark.parametrize("words", [("--from-offset", "0:1")])
def test_what_is_about_a_topic_is_refused_for_a_file(options: Options, words: tuple[str, ...]) -> None:
    shown = options.cli("replay", "plan", "--from-file", "any.avro", "--group", "g", *words, code=2)
    assert f"{words[-2]} needs --topic" in shown.stderr


def test_replays_max_leaves_out_what_was_replayed_so_often(options: Options) -> None:
    """Two runs onto a topic, one of them once more from there: with 2 only what is there for the first time goes on."""
    app, (one, other) = ("--app", options.app), Marks.of(options.rows).runs
    first = options.run(*EVENTS, "--key", one, "--key", other, "--to-topic", COPIES, *app)
    again = ("--topic", COPIES, "--to-topic", COPIES, *app)
    ours = f'replay.id == "{first["plan"]}"'
    second = options.run(*again, "--key", one, "--where", ours, "--replays-max", "2")
    both = f'({ours} or replay.id == "{second["plan"]}")'
    before = options.read(options.scene.topic(COPIES))
    third = options.run(*again, "--where", both, "--replays-max", "2")
    count = {first["plan"]: 1, second["plan"]: 2}
    outcomes: dict[str, Places] = defaultdict(set)
    surroundings = options.replays.surroundings
    for batch in read_results(surroundings.cluster, surroundings.results, plan=third["plan"]):
        for result in batch.results:
            outcomes[result.outcome].add((batch.partition, result.offset))
    replayed = {row.place: count.get(options.replay_of(row), 0) for row in before}
    assert outcomes == {
        "written": {place for place, times in replayed.items() if times == 1},
        "loop_capped": {place for place, times in replayed.items() if times == 2},
    }
    assert third["preview"]["loop_capped"] == len(outcomes["loop_capped"]) == second["done"] > 0


# -- held, joined, ended


@contextmanager
def running_plan(options: Options, *words: str) -> Iterator[subprocess.Popen[str]]:
    """`pipeline replay run` in a process of its own."""
    command = [sys.executable, "-m", "pipeline.cli.main", "replay", "run", *words, "--yes", "--reason", "x", "--json"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=options.process_environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str], code: int = 0) -> Any:
    out, error = process.communicate(timeout=60 * PATIENCE)
    assert process.returncode == code, error
    return json.loads(out.splitlines()[-1])


def test_held_joined_let_go(options: Options) -> None:
    """Held before it begins, so that the second process is there in time; then both have a part of it."""
    plan = options.plan(*LANE)
    plan_id, scene = plan["plan_id"], options.scene
    kept = Path(plan["file"]).rename(scene.folder / "joined.json")
    assert options.json("replay", "pause", str(kept), "--reason", "billing is slow")["was"] == "not started"
    with running_plan(options, str(kept)) as first:
        group = options.replays.surroundings.group(plan_id)
        until("the first is at work", lambda: [len(m.partitions) for m in members(options, group)] == [PARTITIONS])
        refused = options.cli("replay", "run", plan_id, "--yes", "--reason", "x", code=2)
        assert "is being run by" in refused.stderr
        assert "--join" in refused.stderr
        with running_plan(options, str(kept), "--join") as second:
            until("both are at work", lambda: sorted(len(m.partitions) for m in members(options, group)) == [1, 2])
            status = options.json("replay", "status", plan_id)
            assert (status["state"], len(status["members"])) == ("paused", 2)
            assert (status["done"], status["total"]) == (0, len(options.rows))
            assert options.json("replay", "resume", plan_id, "--reason", "it is well")["was"] == "paused"
            done = [ended(first), ended(second)]
    assert [each["state"] for each in done] == ["finished", "finished"]
    copies = [place for place, _ in options.copies(plan_id, scene.lane("replay"))]
    assert copies == sorted(row.place for row in options.rows), "each once, in the order of its partition"
    status = options.json("replay", "status", plan_id)
    assert (status["state"], status["counts"]) == ("finished", {"written": len(options.rows)})
    listed = [row for row in options.json("replay", "list") if row["plan"] == plan_id]
    assert [row["action"] for row in listed] == ["replay.resume", "replay", "replay", "replay.pause"], "newest first"
    assert {row["records"] for row in listed} == {len(options.rows)}


def members(options: Options, group: str) -> Sequence[GroupMember]:
    return tuple(options.scene.admin.describe_group(group).members)


def test_cancelled_it_ends_for_good_and_what_was_sent_are_the_first_of_each_partition(options: Options) -> None:
    plan = options.plan(*LANE, "--tenant", "acme", "--rate", "10")
    with running_plan(options, plan["file"]) as process:
        until("it sends", lambda: options.copies(plan["plan_id"], options.scene.lane("replay")))
        assert options.json("replay", "pause", plan["plan_id"], "--reason", "wrong filter?")["was"] == "running"
        assert options.json("replay", "cancel", plan["plan_id"], "--reason", "wrong filter")["done"] == "cancel"
        done = ended(process, code=1)
    assert done["state"] == "cancelled"
    sent: dict[int, list[Place]] = defaultdict(list)
    for place, _ in options.copies(plan["plan_id"], options.scene.lane("replay")):
        sent[place[0]].append(place)
    assert 0 < sum(map(len, sent.values())) == done["done"] < plan["preview"]["selected"]
    for partition, places in sent.items():
        rows = sorted(r.place for r in options.rows if r.value["tenant"] == "acme" and r.place[0] == partition)
        assert places == rows[: len(places)]
    assert options.json("replay", "status", plan["plan_id"])["state"] == "cancelled"
    again = options.cli("replay", "run", plan["plan_id"], "--yes", "--reason", "x", code=2)
    assert "was cancelled" in again.stderr


# -- beside replays


def test_groups_reset_to_a_moment_of_real_runs(options: Options) -> None:
    """To the first record from then on, of each partition; then back to what was exported."""
    scene, moment = options.scene, Marks.of(options.rows).early_ms
    file = scene.folder / "was.csv"
    reset = ("groups", "reset", "g", "--topic", "events")
    execute = ("--execute", "--reason", "a test")
    before = {p: scene.progress(p).offset for p in range(scene.partitions)}
    options.json(*reset, "--to-current", "--export", str(file))
    late = where(options.rows, lambda r: r.at_ms >= moment)
    wanted = {p: min(offset for partition, offset in late if partition == p) for p in range(scene.partitions)}
    told = options.json(*reset, "--to-datetime", iso(moment), *execute)
    assert {row["partition"]: row["new"] for row in told["rows"]} == wanted
    assert {p: scene.progress(p).offset for p in range(scene.partitions)} == wanted
    assert told["again"] == len(late)
    unprocessed = options.plan(*LANE)["preview"]
    assert (unprocessed["not_processed_yet"], unprocessed["selected"]) == (len(late), len(options.rows) - len(late))
    options.json(*reset, "--from-file", str(file), *execute)
    assert {p: scene.progress(p).offset for p in range(scene.partitions)} == before


def test_tail_shows_what_a_filter_chooses(options: Options) -> None:
    (_, text), wanted = CHOICES["--where or"](Marks.of(options.rows))
    shown = options.cli("tail", "events", "--where", text, "--from", "earliest", "--no-follow", "--json")
    records = list(map(json.loads, shown.stdout.splitlines()))
    assert sorted((r["partition"], r["offset"]) for r in records) == sorted(where(options.rows, wanted))
    by_place = {row.place: row for row in options.rows}
    for record in records:
        assert record["value"] == by_place[record["partition"], record["offset"]].value


def test_tail_shows_dead_letters_by_their_error(options: Options) -> None:
    shown = options.cli(
        "tail", options.scene.lane("dlq"), "--where", 'error.class == "RateLimit"', "--from", "earliest", "--no-follow", "--json",
    )  # fmt: skip
    records = list(map(json.loads, shown.stdout.splitlines()))
    wanted = where(options.letters, lambda r: r.headers["pl.error.class"] == b"RateLimit")
    assert sorted((r["partition"], r["offset"]) for r in records) == sorted(wanted)
