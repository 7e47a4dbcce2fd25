"""The documentation is held to the code: code compiles and runs, commands parse, links resolve, tables are complete."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from pipeline import FlowPolicy, Pipeline, Retries, Settings
from pipeline.core.progress import METADATA_LIMIT, Progress, encode
from pipeline.emit.policy import BufferPolicy
from pipeline.model import headers
from pipeline.model.job_policies import JobOptions
from pipeline.model.policies import BatchPolicy, IsolationPolicy
from pipeline.views import metrics as views_metrics
from pipeline.worker.context import Context
from pipeline.worker.jobs.declaring import JobDeclaration
from pipeline.worker.metrics import StatusServer
from pipeline.worker.regulating import METADATA_FULL
from tests.unit import command_parsing
from tests.unit.docs_reader import ROOT, Block, Page, command_lines, pages

PAGES = pages()
BLOCKS = [block for page in PAGES for block in page.blocks]
PYTHON = [block for block in BLOCKS if block.language == "python"]
RUN_S = 60
GUIDE = ROOT / "docs" / "guide"
DESIGN = Page(ROOT / "docs" / "design.md")


def test_there_is_something_to_check() -> None:
    assert len(PAGES) >= 12
    assert len(PYTHON) >= 14
    assert sum("run" in block.marks for block in PYTHON) >= 8


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_marks_are_known(block: Block) -> None:
    assert block.language in {"python", "sh", "text", "json", "yaml", "ini"}, (
        "say what the block is: ```python, ```sh ..."
    )
    for mark in block.marks:
        assert mark in ("run", "other-group") or re.fullmatch(r"file=[\w.]+", mark), (
            f"{mark} is no mark that a test acts on"
        )


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_code_is_fenced(page: Page) -> None:
    """Markdown takes indented lines for code too, but nothing here would look at that code."""
    assert page.indented_code == []


def test_indented_code_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Run it:\n\n    pipeline runn a:b\n\n- a list\n    goes on\n\n```text\n\n    as it is\n```\n", encoding="utf-8"
    )
    assert Page(page).indented_code == ["    pipeline runn a:b"]


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_compiles(block: Block) -> None:
    compile(block.body, str(block), "exec", flags=0x2000)  # PyCF_ALLOW_TOP_LEVEL_AWAIT: fragments may await


@pytest.mark.parametrize("block", [block for block in PYTHON if "run" in block.marks], ids=str)
def test_python_runs(block: Block, tmp_path: Path) -> None:
    """In a process of its own, on a cluster in memory; its own `assert`s are checked."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIPELINE_")}
    environment |= {"PIPELINE_BROKER": "memory://docs", "PYTHONPATH": str(ROOT)}
    program = tmp_path / "block.py"
    program.write_text(block.body, encoding="utf-8")
    ran = subprocess.run(  # noqa: PLW1510 - judged below
        [sys.executable, str(program)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=RUN_S
    )
    assert ran.returncode == 0, f"{block}:\n{ran.stderr[-3_000:]}"


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "sh"], ids=str)
def test_commands_parse(block: Block) -> None:
    for words in command_lines(block.body):
        command_parsing.check(words)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_in_sentences_exist(page: Page) -> None:
    for span in page.spans:
        if span == "pipeline" or span.startswith("pipeline "):
            for words in command_lines(span.replace("KEY | EVENT-ID", "KEY")):
                command_parsing.check_mention(words)


@pytest.mark.parametrize(
    "words",
    [
        "runn app:app",
        "run",
        "groups",
        "groups lagg g",
        "topics plan a:b --partitons 3",
        "keys skip g",
        "tail t --limit many",
    ],
)
def test_wrong_commands_are_seen(words: str) -> None:
    with pytest.raises(command_parsing.NotACommand):
        command_parsing.check(words.split())


def test_command_lines_are_found_in_shell_text() -> None:
    text = "A=1 pipeline emit --type Message < m.jsonl  # pipeline nonsense\npipeline run a:b && .venv/bin/pipeline demo | cat\n"
    found = list(command_lines(text))
    assert found == [["emit", "--type", "Message"], ["run", "a:b"], ["demo"]]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_resolve(page: Page) -> None:
    for target in page.links:
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.path.parent / name).resolve() if name else page.path
        assert file.is_relative_to(ROOT), f"{page}: {target} leaves the project"
        assert file.exists(), f"{page}: {target} leads nowhere"
        if anchor:
            assert anchor in Page(file).anchors, f"{page}: {target} has no such heading"


def test_every_guide_is_reached_from_the_readme() -> None:
    linked = set(Page(ROOT / "README.md").links)
    missing = {str(path.relative_to(ROOT)) for path in GUIDE.glob("*.md")} - linked
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_environment_variables_exist(page: Page) -> None:
    known = {f"PIPELINE_{name.upper()}" for name in Settings.model_fields}
    known |= {"PIPELINE_TEST_BROKER"}  # tests/conftest.py
    assert set(re.findall(r"\bPIPELINE_[A-Z_]*[A-Z]", page.text)) <= known


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_no_path_of_a_machine(page: Page) -> None:
    assert not re.search(r"(?<![\w.~])/(home|work|root|Users)/", page.text)


# -- tables that must be complete


def _rows(path: Path) -> set[str]:
    """What stands in backquotes in the first cell of each table row."""
    cells = re.findall(r"^\| *([^|]+?) *\|", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {span for cell in cells for span in re.findall(r"`([^`]+)`", cell)}


def test_every_setting_is_documented() -> None:
    rows = _rows(GUIDE / "operating.md")
    assert {f"PIPELINE_{name.upper()}" for name in Settings.model_fields} <= rows


def test_every_argument_of_subscribe_is_documented() -> None:
    arguments = set(inspect.signature(Pipeline.subscribe).parameters) - {"self"}
    heads = set(re.findall(r"^#+ `(\w+)", (GUIDE / "handling.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert arguments == heads & arguments
    assert heads <= arguments, "a heading names an argument that does not exist"


@pytest.mark.parametrize("asked", [JobDeclaration, JobOptions])
def test_every_argument_of_jobs_is_documented(asked: type) -> None:
    page = (ROOT / "docs/guide/jobs.md").read_text(encoding="utf-8")
    names = {each.name for each in fields(asked)} - {"name"}
    assert len(names) > 10
    assert {name for name in names if f"`{name}`" not in page} == set()


@pytest.mark.parametrize(("policy", "page"), [
    (FlowPolicy, "handling.md"), (BatchPolicy, "handling.md"), (IsolationPolicy, "handling.md"), (Retries, "handling.md"),
    (BufferPolicy, "producing.md"),
])  # fmt: skip
def test_every_policy_field_is_documented_with_its_default(policy: type, page: str) -> None:
    text = (GUIDE / page).read_text(encoding="utf-8")
    for name, field in policy.__dataclass_fields__.items():  # type: ignore[attr-defined]
        if not field.init:
            continue
        row = re.search(rf"^\| `{name}` \| ([^|]+) \|", text, re.MULTILINE)
        assert row, f"{page} has no row for {policy.__name__}.{name}"
        written = row[1].strip().strip("`").replace(",", "").replace('"', "")
        assert written in {str(field.default), "none" if field.default in (None, ()) else ""}, f"{name}: {written}"


def test_every_name_of_the_context_is_documented() -> None:
    names = {name for name in vars(Context) if not name.startswith("_")} - {"emitted", "ended", "outbox", "record_name"}
    rows = {row.partition("(")[0].removeprefix("ctx.") for row in _rows(GUIDE / "handling.md")}
    assert names <= rows


def _metric_names(text: str) -> set[str]:
    return set(re.findall(r"^# TYPE (pipeline_\w+)", text, re.MULTILINE))


def test_every_metric_is_documented() -> None:
    from prometheus_client import generate_latest
    from prometheus_client.registry import CollectorRegistry

    from pipeline.emit.metrics import PublisherCollector
    from pipeline.worker import metrics
    from pipeline.worker.worker import Worker

    assert StatusServer
    registry = CollectorRegistry()
    app = Pipeline("docs", settings=Settings(broker="memory://docs"))
    app.subscribe("t", group="g")(lambda event, ctx: None)
    registry.register(metrics.WorkerCollector(Worker(app)))
    registry.register(PublisherCollector({}))
    worker = _metric_names(generate_latest(registry).decode())
    views = {name for name in _metric_names(generate_latest().decode()) if not name.endswith("_created")}
    assert views_metrics
    assert len(worker) > 10
    assert worker | views <= _rows(GUIDE / "operating.md")


def test_every_header_is_in_the_design() -> None:
    source = inspect.getsource(headers)
    names = set(re.findall(r'"(pl\.[a-z_.]+)"', source)) - {"pl.error.", "pl.origin."}
    delivery = headers.DeliveryHeaders(
        1, 1, 1, "t", 0, 0, 1, "g", 1, 1, 1, "r", 1, "s", headers.ErrorInfo("a", "b", "c", "d")
    )
    names |= {name for name, _ in headers.dead_letter_headers([(headers.EVENT_ID, b"e")], delivery)}
    assert len(names) > 20
    assert names <= _rows(DESIGN.path)


def _line(module: str) -> str:
    doc = ast.get_docstring(ast.parse((ROOT / module).read_text(encoding="utf-8"))) or "?"
    return f"| `{module}` | {doc.split('. ')[0].splitlines()[0].rstrip('.')} |"


def test_the_file_map_is_complete() -> None:
    """docs/design.md has one line for each module, and no line for one that is gone."""
    modules = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "pipeline").rglob("*.py")
        if path.name != "__init__.py" and "__pycache__" not in path.parts
    }
    listed = re.findall(r"^\| `(pipeline/[\w/]+\.py)` \|", DESIGN.text, re.MULTILINE)
    assert sorted(listed) == sorted(set(listed)), "a module is listed twice"
    assert set(listed) - modules == set(), "lines without a module"
    missing = "\n".join(_line(module) for module in sorted(modules - set(listed)))
    assert not missing, f"add to the file map in docs/design.md:\n{missing}"


# -- numbers


def _full(open_offsets: list[int], end: int) -> float:
    fences = {"10s": 100_000, "30s": 100_000, "2m": 100_000, "10m": 100_000, "replay": 0}
    text = encode(Progress(open_offsets[0], end, tuple(open_offsets), 40, fences), limit=1 << 30)
    return len(text) / METADATA_LIMIT


def test_what_the_guide_says_of_commit_metadata_holds() -> None:
    """docs/guide/operating.md, "Slow neighbours"."""
    assert _full([0], 100_000_000) < 0.02, "one slow record is covered however long it takes"
    assert _full([i * 100 for i in range(1_100)], 110_000) < METADATA_FULL, "1,100 that are 100 apart"
    assert _full([i * 1_000 for i in range(740)], 740_000) < METADATA_FULL, "740 that are 1,000 apart"
    assert min(_full(list(range(0, 18_000, 2)), 18_000), 1) < METADATA_FULL, "any pattern over 18,000 offsets"
    assert _full(list(range(0, 18_500, 2)), 18_500) >= METADATA_FULL
