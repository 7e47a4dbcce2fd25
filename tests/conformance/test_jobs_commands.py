"""`pipeline jobs` and `pipeline schedules`, on a cluster in memory and on real Kafka."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from pipeline.cli import main
from pipeline.model.errors import ClusterUnavailable
from pipeline.model.job_ids import job_id
from tests import jobs_at_work
from tests.jobs_at_work import soon

LONG_AGO = job_id(1_600_000_000_000, b"0123456789")


class Operator:
    """Types commands; `app` is the module whose application is served."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.target = f"{module.__name__}:app"

    def run(self, *words: str, code: int = 0, given: str | None = None) -> str:
        shown = CliRunner().invoke(main.app, list(words), input=given)
        assert shown.exit_code == code, f"{words}: {shown.exit_code}\n{shown.output}\n{shown.exception!r}"
        return shown.stdout if code == 0 else shown.output

    def json(self, *words: str, code: int = 0, given: str | None = None) -> Any:
        shown = CliRunner().invoke(main.app, [*words, "--json"], input=given)
        assert shown.exit_code == code, f"{words}: {shown.exit_code}\n{shown.output}\n{shown.exception!r}"
        return json.loads(shown.stdout)

    def enqueue(self, *words: str) -> str:
        (found,) = self.json("jobs", "enqueue", self.target, *words)
        return str(found["id"])

    def state(self, job: str) -> str:
        shown = CliRunner().invoke(main.app, ["jobs", "show", job, "--json"])
        return str(json.loads(shown.stdout)["state"]) if shown.exit_code == 0 else ""

    def becomes(self, job: str, state: str) -> None:
        soon(lambda: self.state(job) == state)


@pytest.fixture
def operator(broker: str, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Operator]:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])
    for name, value in (("BROKER", broker), ("PREFIX", prefix), ("STATE_DIR", str(tmp_path / "state"))):
        monkeypatch.setenv(f"PIPELINE_{name}", value)
    monkeypatch.setenv("PIPELINE_BLOBS", str(tmp_path / "blobs"))
    module = jobs_at_work.made(tmp_path, f"operated_{abs(hash(prefix + broker))}", monkeypatch)
    jobs_at_work.make_topics(module.app)
    with jobs_at_work.served(module.app):
        yield Operator(module)


def test_a_large_result_is_read_from_the_blob_store(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    job = operator.enqueue("classify", json.dumps({"id": "x" * 120_000}))
    assert operator.json("jobs", "result", job, "--timeout", "30s")["result"] == {"label": "x" * 120_000 + "!"}
    assert operator.json("jobs", "show", job)["result_ref"].startswith("queue:")
    monkeypatch.delenv("PIPELINE_BLOBS")
    assert "set PIPELINE_BLOBS" in operator.run("jobs", "result", job, code=1)


def test_jobs_are_asked_for_listed_shown_and_their_results_printed(operator: Operator) -> None:
    job = operator.enqueue("classify", '{"id": "a"}', "--key", "k", "--tenant", "acme", "--tag", "red")
    assert operator.json("jobs", "result", job, "--timeout", "30s") == {
        "id": job,
        "state": "completed",
        "result": {"label": "a!"},
    }
    assert operator.run("jobs", "result", job) == '{"label": "a!"}\n'
    many = operator.json(
        "jobs", "enqueue", operator.target, "classify", "--lines", given='{"id": "b"}\n\n{"id": "c"}\n'
    )
    assert len(many) == 2
    (waited,) = operator.json("jobs", "enqueue", operator.target, "classify", '{"id": "d"}', "--wait", "30s")
    assert waited["result"] == {"label": "d!"}
    soon(lambda: operator.json("jobs", "list")["total"] == 4)
    listed = operator.json(
        "jobs", "list", "--tenant", "acme", "--key", "k", "--tag", "red", "--state", "completed", "--last", "1h"
    )
    assert [each["id"] for each in listed["jobs"]] == [job]
    assert listed["jobs"][0]["tags"] == ["red"]
    text = operator.run("jobs", "list", "--limit", "2")
    assert "2 of 4 shown; the next: --after " in text
    rest = operator.json("jobs", "list", "--after", text.rpartition("--after ")[2].strip())
    assert len(rest["jobs"]) == 2
    shown = operator.json("jobs", "show", job)
    assert (shown["state"], shown["attempt"], shown["tenant"], shown["input"], shown["result"]) == (
        "completed",
        1,
        "acme",
        None,
        None,
    )
    assert operator.json("jobs", "show", job, "--reveal")["input"] == {"id": "a", "text": ""}
    assert "--reveal shows it" in operator.run("jobs", "show", job)
    assert f"Job {job} (classify): completed" in operator.run("jobs", "why", job)


THREE = '{"id": "a"}\n{"id": "bad"}\n{"id": "c"}\n'


def test_of_many_jobs_that_are_waited_for_each_is_told_in_order_also_when_one_fails(operator: Operator) -> None:
    many = ("jobs", "enqueue", operator.target, "picky", "--lines", "--wait", "30s")
    first, bad, last = operator.json(*many, code=1, given=THREE)
    for each, text in ((first, "a"), (last, "c")):
        assert each == {"id": each["id"], "state": "completed", "result": text, "warning": None}
    assert (bad["state"], "result" in bad) == ("dead_letter", False)
    assert bad["error"] == f"job {bad['id']} was given up after 1 attempt: ValueError: no such ticket"
    shown = CliRunner().invoke(main.app, list(many), input=THREE)
    assert shown.exit_code == 1
    assert [text.split()[1] for text in shown.stdout.splitlines()] == ['"a"', '"c"']
    assert "was given up after 1 attempt: ValueError: no such ticket" in shown.stderr
    assert "result" not in str(operator.json("jobs", "enqueue", operator.target, "picky", '{"id": "a"}'))


def test_a_job_that_is_not_waited_for_long_enough_is_told_with_its_id(operator: Operator) -> None:
    words = ("jobs", "enqueue", operator.target, "slow", '{"id": "a"}', "--wait", "300ms")
    (late,) = operator.json(*words, code=1)
    assert (late["state"], late["error"]) == (
        None,
        f"job {late['id']} had no ending within 300ms, and nothing was heard of it: "
        "it goes on, ask again, unless it is forgotten (`status()` looks)",
    )
    while not (before := operator.json("jobs", "list")["total"]):  # it has no entry before it has run for a while
        time.sleep(0.1)
    assert "--wait='soon' is not a duration" in operator.run(*words[:-1], "soon", code=2)
    assert operator.json("jobs", "list")["total"] == before, "nothing was asked for"


def test_a_warning_of_a_job_that_is_waited_for_is_shown(operator: Operator) -> None:
    words = ("jobs", "enqueue", operator.target, "warns", "--wait", "30s")
    (warned,) = operator.json(*words)
    assert (warned["state"], warned["result"], warned["warning"]) == ("completed_with_warning", None, "half of it")
    shown = CliRunner().invoke(main.app, list(words))
    assert (shown.exit_code, "completed with a warning: half of it" in shown.stderr) == (0, True)


@pytest.mark.parametrize(
    "option",
    ["--key", "--dedup-id", "--tenant", "--workflow", "--delay", "--timeout", "--expires", "--run-at", "--tag"],
)
def test_an_empty_option_of_a_request_is_refused_as_in_python(operator: Operator, option: str) -> None:
    said = operator.run("jobs", "enqueue", operator.target, "classify", '{"id": "a"}', option, "", code=2)
    assert "''" in said


def test_an_empty_tenant_of_a_schedule_is_refused(operator: Operator) -> None:
    words = ("schedules", "add", operator.target, "nightly", "classify", '{"id": "a"}', "--cron", "0 9 * * *")
    assert "tenant='' must be a text" in operator.run(*words, "--tenant", "", code=2)


def test_a_state_that_there_is_not_is_answered_with_all_that_are_taken(operator: Operator) -> None:
    said = operator.run("jobs", "list", "--state", "foo", code=2)
    assert "--state 'foo' must be one of " in said
    for state in ("unfinished", "dead_letter", "duplicate", "queued"):
        assert state in said


def test_a_variable_that_a_module_does_not_have_is_said_to_be_missing(operator: Operator) -> None:
    said = operator.run("jobs", "enqueue", f"{operator.module.__name__}:nope", "classify", code=2)
    assert f"module {operator.module.__name__!r} has no variable 'nope'" in said


def test_health_of_a_queue_whose_brokers_do_not_answer_has_the_exit_code_of_that(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise ClusterUnavailable("no broker answers at nowhere:9092")

    kind = type(operator.module.app.cluster)
    monkeypatch.setattr(kind, "admin", away)
    assert operator.json("jobs", "health", code=3)["connected"] is False
    assert "no broker answers" in operator.run("jobs", "health", code=3)


def test_what_can_not_be_asked_for_is_one_sentence_and_an_exit_code(operator: Operator) -> None:
    target = operator.target
    for words, code, text in (
        (("jobs", "enqueue", target, "clasify", "{}"), 1, "job 'clasify' is not declared by this application"),
        (("jobs", "enqueue", target, "classify", '{"text": "x"}'), 1, "the input does not fit job 'classify': id"),
        (("jobs", "enqueue", target, "classify", "{id: 1}"), 2, "the input is not JSON"),
        (("jobs", "enqueue", target, "classify", '{"id": "a"}', "--delay", "-5m"), 2, "delay='-5m' is not a duration"),
        (
            ("jobs", "enqueue", target, "classify", '{"id": "a"}', "--attempts", "0"),
            2,
            "attempts=0 must be a whole number",
        ),
        (
            ("jobs", "enqueue", target, "classify", '{"id": "a"}', "--dedup-window", "1h"),
            2,
            "without dedup_id means nothing",
        ),
        (
            ("jobs", "enqueue", target, "classify", '{"id": "a"}', "--run-at", "soon"),
            2,
            "--run-at 'soon' is not a time",
        ),
        (("jobs", "list", "--state", "done"), 2, "--state 'done' must be one of"),
        (("jobs", "list", "--queue", "no"), 2, "queue 'no' is not on this cluster"),
        (("jobs", "show", LONG_AGO), 1, "is expired"),
        (("jobs", "result", LONG_AGO), 1, "is expired"),
        (("jobs", "cancel", LONG_AGO), 1, "is expired"),
        (("jobs", "retry", LONG_AGO), 1, "is expired"),
        (("jobs", "why", LONG_AGO), 1, "is not in the store"),
        (("jobs", "stats", "--last", "2h"), 2, "--last must be from 1m to 60m"),
        (("jobs", "tail", "--event", "done"), 2, "kinds='done' must be some of"),
        (
            ("schedules", "add", target, "s", "classify", '{"id": "a"}', "--cron", "x"),
            2,
            "cron='x' is not a cron expression",
        ),
        (
            ("schedules", "add", target, "s", "classify", '{"id": "a"}', "--cron", "0 9 * * *", "--zone", "Mars"),
            2,
            "zone='Mars'",
        ),
        (("schedules", "pause", "nothing"), 1, "has no schedule 'nothing'"),
    ):
        assert text in operator.run(*words, code=code)


def test_a_job_that_was_given_up_is_found_explained_and_retried(operator: Operator) -> None:
    job = operator.enqueue("fragile", '{"id": "a"}')
    operator.becomes(job, "dead_letter")
    assert "the model is away" in operator.run("jobs", "list", "--state", "dead_letter")
    shown = operator.json("jobs", "show", job)
    assert shown["error"]["message"] == "the model is away"
    assert [each["number"] for each in shown["history"]] == [1, 2]
    assert "last error, of attempt 2: RuntimeError: the model is away" in operator.run("jobs", "why", job)
    assert "the model is away" in operator.run("jobs", "result", job, code=1)
    operator.module.broken = False
    (asked,) = operator.json("jobs", "retry", job)
    assert (asked["id"], asked["asked"], asked["why"]) == (job, True, None)
    assert asked["note"].startswith("Its dead letter stays as it is: ")
    operator.becomes(job, "completed")
    assert operator.run("jobs", "result", job) == '"mended"\n'
    listed = shlex.split(asked["note"].split("`")[1])
    (letter,) = operator.json(*listed[1:])["dead_letters"]
    assert letter["state"] == "open", "a retry does nothing about it, as the note says"
    assert "is completed: only a job that was given up or cancelled" in operator.run("jobs", "retry", job, code=1)


def test_a_retry_says_that_a_dead_letter_stays_only_where_there_is_one(operator: Operator) -> None:
    operator.module.broken = True
    job, other = (
        operator.enqueue("fragile", '{"id": "a"}'),
        operator.enqueue("classify", '{"id": "a"}', "--delay", "1d"),
    )
    operator.becomes(job, "dead_letter")
    operator.becomes(other, "scheduled")
    operator.run("jobs", "cancel", other)
    operator.becomes(other, "cancelled")
    said = operator.run("jobs", "retry", job, other)
    assert said.count("Its dead letter stays as it is") == 1
    assert f"pipeline dlq list --group default --key {job}" in said


def test_the_input_of_a_dead_letter_is_edited_as_json_and_redriven_by_the_command_that_this_prints(
    operator: Operator, tmp_path: Path
) -> None:
    job = operator.enqueue("picky", '{"id": "bad"}')
    operator.becomes(job, "dead_letter")
    where = ("--group", "default")
    (letter,) = soon(lambda: operator.json("dlq", "list", *where)["dead_letters"])
    (known,) = operator.json("dlq", "show", letter["position"], *where, "--reveal", "--reason", "a test")
    assert known["value"]["payload"] == {"id": "bad", "text": ""}
    fixed = tmp_path / "fixed.json"
    edit = ("dlq", "edit", letter["position"], *where, "--value", str(fixed), "--yes", "--reason", "it's fixed")
    fixed.write_text(json.dumps({**known["value"], "id": "other"}))
    assert "JobRequest.id can't be changed, it would be another job" in operator.run(*edit, code=1)
    fixed.write_text(json.dumps({**known["value"], "payload": {"id": "good"}}))
    said = operator.run(*edit)
    redrive = re.search(r"pipeline dlq redrive [^`\n]+", said)
    assert redrive is not None, said
    operator.run(*shlex.split(redrive[0])[1:])
    operator.becomes(job, "completed")
    assert operator.run("jobs", "result", job) == '"good"\n'
    assert operator.json("jobs", "show", job, "--reveal")["input"] == {"id": "good"}
    assert operator.json("dlq", "list", *where)["dead_letters"] == []


def test_jobs_are_cancelled_and_run_now_and_why_names_what_they_wait_for(operator: Operator) -> None:
    runs = operator.enqueue("slow", '{"id": "a"}', "--key", "k")
    operator.becomes(runs, "running")
    behind = operator.enqueue("slow", '{"id": "b"}', "--key", "k")
    later = operator.enqueue("classify", '{"id": "c"}', "--delay", "30d")
    operator.becomes(behind, "queued")
    operator.becomes(later, "scheduled")
    assert f"it waits for job {runs} of the same key k, which is running" in operator.run("jobs", "why", behind)
    assert operator.json("jobs", "why", behind)["owner"] is not None
    assert "waits for its time" in operator.run("jobs", "why", later)
    operator.run("jobs", "run-now", later)
    operator.becomes(later, "completed")
    operator.run("jobs", "cancel", runs, behind, "--reason", "not needed")
    for job in (runs, behind):
        operator.becomes(job, "cancelled")
    assert operator.json("jobs", "show", runs)["reason"] == "not needed"
    mixed = operator.json("jobs", "cancel", runs, LONG_AGO, code=1)
    assert [each["asked"] for each in mixed] == [False, False]


def test_b6_b10_f1_stats_health_and_tail(operator: Operator) -> None:
    for words in (("classify", '{"id": "a"}'), ("fragile", '{"id": "a"}'), ("warns",)):
        operator.enqueue(*words)
    found = soon(lambda: (s := operator.json("jobs", "stats"))["total"]["ended"] == 3 and s)
    assert (found["total"]["completed"], found["total"]["dead_letter"], found["total"]["retried"]) == (2, 1, 1)
    assert {each["type"] for each in found["types"]} == {"classify", "fragile", "warns"}
    assert "classify" in operator.run("jobs", "stats", "--last", "10m")
    health = operator.json("jobs", "health")
    assert (health["healthy"], health["workers"], health["partitions"]) == (True, 1, 2)
    assert "is not well: topic" in operator.run("jobs", "health", "--queue", "no", code=1)
    tail = CliRunner().invoke(main.app, ["jobs", "tail", "--last", "1h", "--limit", "4", "--json"])
    events = [json.loads(each) for each in tail.stdout.splitlines()]
    assert sorted((each["event"], each["type"]) for each in events) == [
        ("completed", "classify"), ("completed", "warns"), ("failed", "fragile"), ("retrying", "fragile"),
    ]  # fmt: skip
    assert "the model is away" in operator.run("jobs", "tail", "--last", "1h", "--limit", "1", "--event", "failed")


def test_d5_schedules_are_added_listed_paused_resumed_run_and_removed(operator: Operator) -> None:
    operator.run(
        "schedules", "add", operator.target, "morning", "classify", '{"id": "a"}', "--cron", "0 9 * * *",
        "--zone", "Europe/Berlin", "--misfire", "skip", "--key", "k",
    )  # fmt: skip

    def listed() -> Any:
        return operator.json("schedules", "list")

    (row,) = soon(listed)
    assert (row["name"], row["type"], row["zone"], row["misfire"], row["key"]) == (
        "morning",
        "classify",
        "Europe/Berlin",
        "skip",
        "k",
    )
    assert row["next_ms"] is not None
    assert "Europe/Berlin" in operator.run("schedules", "list")
    operator.run("schedules", "pause", "morning")
    soon(lambda: listed()[0]["paused"])
    assert "paused" in operator.run("schedules", "list")
    operator.run("schedules", "run-now", "morning")
    ticks = soon(lambda: operator.json("jobs", "list", "--schedule", "morning", "--state", "completed")["jobs"])
    assert ticks[0]["key"] == "k"
    operator.run("schedules", "resume", "morning")
    soon(lambda: not listed()[0]["paused"])
    operator.run("schedules", "remove", "morning")
    soon(lambda: listed() == [])
    assert operator.run("schedules", "list") == "no schedules\n"
