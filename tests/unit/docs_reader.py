"""Reads the project's Markdown: fenced blocks with their marks, links, headings, and the `pipeline` command lines in them.

A fence's info string says what a block is for: `python` compiles; `python run` is executed by test_docs.py (on memory://);
`python file=NAME` is a program that tests/integration/test_examples.py runs together with the others of its page;
`sh other-group` holds commands about another subscription than the page's own, which test_dlq_guide.py leaves out.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:\A|\n[ \t]*\n)(?P<line>(?: {4}|\t).*)")
_LINK = re.compile(r"(?<!!)\[[^\]]+\]\((?P<target>[^)\s]+)\)")
_SPAN = re.compile(r"(?<!`)`(?P<text>[^`\n]+)`(?!`)")
_STOPS = frozenset({"|", "<", ">", "&", ";", "&&", "||", ">>"})


@dataclass(frozen=True)
class Block:
    """One fenced block. `line` is where its first line stands; `marks` are the words after the language."""

    page: Page
    line: int
    language: str
    marks: tuple[str, ...]
    body: str

    @property
    def file(self) -> str | None:
        return next((mark.removeprefix("file=") for mark in self.marks if mark.startswith("file=")), None)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Page:
    path: Path

    def __str__(self) -> str:
        return str(self.path.relative_to(ROOT))

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def prose(self) -> str:
        """The text with fenced blocks blanked, line numbers kept."""
        return _FENCE.sub(lambda match: "\n" * match[0].count("\n"), self.text)

    @property
    def blocks(self) -> list[Block]:
        return [
            Block(self, self._line(match.start("body")), *_info(match["info"]), match["body"])
            for match in _FENCE.finditer(self.text)
        ]

    @property
    def indented_code(self) -> list[str]:
        """First lines of code that is indented and not fenced."""
        return [match["line"] for match in _INDENTED.finditer(self.prose)]

    @property
    def links(self) -> list[str]:
        return [match["target"] for match in _LINK.finditer(self.prose)]

    @property
    def anchors(self) -> set[str]:
        """Headings as GitHub makes anchors of them."""
        heads = re.findall(r"^#+ +(.+)$", self.prose, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}

    @property
    def spans(self) -> list[str]:
        return [match["text"] for match in _SPAN.finditer(self.prose)]

    def _line(self, at: int) -> int:
        return self.text.count("\n", 0, at) + 1


def _info(text: str) -> tuple[str, tuple[str, ...]]:
    language, *marks = text.split() or [""]
    return language, tuple(marks)


def pages() -> list[Page]:
    """Every page that is part of the documentation."""
    found = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [Page(path) for path in found]


def command_lines(shell: str) -> Iterator[list[str]]:
    """Arguments of each `pipeline ...` in shell text: comments, redirections and variables before it left out."""
    for line in shell.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        lexer.commenters = "#"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word in _STOPS:
                yield from _pipeline_in(words)
                words = [] if word not in ("<", ">", ">>") else ["redirected-to"]
            else:
                words.append(word)


def _pipeline_in(words: list[str]) -> Iterator[list[str]]:
    while words and re.fullmatch(r"(sudo|exec|[A-Z_]+=.*)", words[0]):
        words = words[1:]
    if words and (words[0] == "pipeline" or words[0].endswith("/bin/pipeline")):
        yield words[1:]
