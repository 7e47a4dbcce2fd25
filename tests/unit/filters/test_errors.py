"""What is wrong with a filter is said in one sentence, with a caret under the column it is about; hostile text ends there too."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.filters import FilterError, MessageRow, compile_filter
from pipeline.filters.glob import PATTERN_MAX, glob
from pipeline.filters.parser import DEPTH_MAX, LIST_MAX
from pipeline.filters.tokens import TEXT_MAX
from pipeline.inspect.decoding import Shown
from pipeline.memory.log import MemoryMessage
from pipeline.model.errors import ConfigurationError


def error_of(text: str) -> FilterError:
    with pytest.raises(FilterError) as caught:
        compile_filter(text, 0)
    return caught.value


CASES = [  # the text with ^ before the character that the caret is under, and a part of the sentence
    ('attempt == ^"x"', "attempt is a number, not text: write it without quotes, such as attempt == 3"),
    ('partition in (1, ^"2")', "partition is a number, not text"),
    ("key == ^5", "key is text: put it in quotes"),
    ("key == ^10m", "key is text"),
    ("attempt == ^true", "attempt is a number"),
    ("attempt > ^2h", "attempt is a number"),
    ("age > ^5", "age is a duration: write a number with ms, s, m, h or d, such as age > 2h"),
    ('age > ^"2h"', "age is a duration"),
    ("timestamp > ^2h", "how long ago is written with age, such as age > 2h"),
    ("first_failed > ^2h", "first_failed is a time"),
    ('timestamp > ^"2026-13-31"', "'2026-13-31' is not one"),
    ('timestamp > ^""', "'' is not one"),
    ('timestamp > ^"yesterday"', "'yesterday' is not one"),
    ('timestamp > ^"12345"', "'12345' is not one"),
    ('timestamp in ("2026-01-31T00:00Z", ^"x")', "timestamp is a time"),
    ('size ^startswith "x"', "startswith is for text, and size is a number"),
    ('timestamp not ^like "2026*"', "like is for text, and timestamp is a time"),
    ("key like ^5", "like needs text in quotes"),
    ("value.x endswith ^true", "endswith needs text in quotes"),
    ("header.x contains ^5", "contains needs text in quotes"),
    ("header.x == ^true", "a header's text"),
    ("value.x ^< true", "true and false have no order: write value.x == true"),
    ("key == ^null", "null is not compared: write key is null, or is not null"),
    ("tenant == ^acme", 'text is put in quotes: write "acme"'),
    ("offset == ^origin.offset", "origin.offset is a field, and fields are compared with values only"),
    ('^tenan == "x"', "the field 'tenan' is not known: did you mean tenant?"),
    ('^error.clas == "x"', "did you mean error.class?"),
    ('^Attempt == "x"', "did you mean attempt?"),
    ("^headers.x == 1", "did you mean header.x?"),
    ("^values.a.b == 1", "did you mean value.a.b?"),
    ("^zzz == 1", "a part of the record's value is written value.zzz, a header header.zzz"),
    ('^header == "x"', "write header and the header's name"),
    (f"^value{'.a' * 33} == 1", "the path has 33 parts: at most 32"),
    ("value.^ == 1", "a name is missing after the dot"),
    ("value.^.x == 1", "a name is missing after the dot"),
    ("key ^= 'a'", "= is not an operator: write =="),
    ("key ^=== 'a'", "write =="),
    ("key ^<> 'a'", "write !="),
    ("key ^=~ 'a'", "write like"),
    ("key == 'a' ^&& hop == 1", "write and"),
    ("key == 'a' ^|| hop == 1", "write or"),
    ("^!(key == 'a')", "write not"),
    ("key == ^'a", "the text is not closed: a ' is missing"),
    ('key == ^"a\\"', 'the text is not closed: a " is missing'),
    ('key == ^"a\\', "the text is not closed"),
    ('key == "a^\\q"', "\\q is not an escape: write \\\\ for a backslash"),
    ("attempt == ^12x", "12x can't be read: a duration is a number with ms, s, m, h or d"),
    ("age > ^999999999d", "at most 100,000 days"),
    ("attempt == ^" + "9" * 33, "the number has 33 characters"),
    ("attempt == ^١", "means nothing here"),
    ("attempt == ^@", "the character '@' means nothing here"),
    ("attempt == ^", "a value is missing after ==: write one such as 3"),
    ("age > ^)", "a value is missing after >: write one such as 2h"),
    ("attempt^", "after attempt comes == != <"),
    ("attempt ^3", "after attempt comes == != <"),
    ("attempt ^and hop == 1", "after attempt comes"),
    ("key not ^== 'a'", "after not comes in, contains"),
    ("key is ^empty", "after is comes null or not null"),
    ("key is not ^'a'", "after is comes null or not null"),
    ("key in ^'a'", "after in comes a list"),
    ("key in (^)", "a value is missing after in"),
    ("key in ('a' ^'b')", "a , or ) is missing in the list that begins at column 8"),
    ("key in ('a', ^", "a value is missing"),
    ("(key == 'a'^", "a ) is missing for the ( at column 1"),
    ("((key == 'a')^", "a ) is missing for the ( at column 1"),
    ("key == 'a'^)", "this ) closes nothing"),
    ("key == 'a' ^hop == 1", "expected and, or, or the end of the filter here"),
    ("^and key == 'a'", "and is not a field"),
    ("key == 'a' and ^", "a condition begins with a field"),
    ("^3 < attempt", "a condition begins with a field"),
    ("not ^", "a condition begins with a field"),
    ("(^)", "a condition begins with a field"),
    ("key == 'a' or ^null == 1", "null is not a field"),
]


@pytest.mark.parametrize(("marked", "sentence"), CASES)
def test_the_caret_is_under_what_the_sentence_is_about(marked: str, sentence: str) -> None:
    at = marked.index("^")
    error = error_of(marked.replace("^", "", 1))
    assert sentence in error.sentence
    assert (error.line, error.column) == (1, at + 1)
    shown, caret = error.excerpt.split("\n")
    assert caret.strip() == "^"
    if at < 60:
        assert caret.index("^") == 2 + at
        assert shown[2 : 2 + at] == marked[:at]
    assert str(error) == f"{error.sentence}\n{error.excerpt}"
    assert isinstance(error, ConfigurationError)


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_an_empty_filter_is_an_error_with_an_example(text: str) -> None:
    assert "the filter is empty: write a condition such as attempt >= 3" in str(error_of(text))
    assert "^" not in str(error_of(text))


def test_the_line_of_a_longer_filter_is_shown() -> None:
    error = error_of('key == "a"\n  and partition == 3\n  and hopp == 1\n  and age > 1h')
    assert (error.line, error.column) == (3, 7)
    assert error.excerpt == "    and hopp == 1\n        ^"


def test_a_long_line_is_cut_around_the_column() -> None:
    error = error_of(f"key in ({', '.join(['12345'] * 50)})")
    assert error.excerpt == "  key in (12345, 12345, 12345, 12345, 12345, 12345...\n" + " " * 10 + "^"
    before = f'key == "{"x" * 500}" and '
    error = error_of(f"{before}kay == 1")
    shown, caret = error.excerpt.split("\n")
    assert error.column == len(before) + 1
    assert shown.startswith("  ...xxx")
    assert shown[caret.index("^") :] == "kay == 1"


def test_the_caret_stands_right_under_wide_and_combining_characters() -> None:
    assert error_of('key == "日本" and kay == 1').excerpt.endswith("\n" + " " * (2 + 7 + 6 + 5) + "^")
    assert error_of('key == "e\u0301" and kay == 1').excerpt.endswith("\n" + " " * (2 + 7 + 3 + 5) + "^")


@pytest.mark.parametrize("char", ["\x00", "\x1b", "\x07", "\u202e", "\u2028", "\r", "\ud800", "\x9b"])
def test_nothing_in_an_error_can_steer_a_terminal(char: str) -> None:
    for text in (
        f"key {char}== 1",
        f'key == "{char}" and kay == 1',
        f'value."{char}" == header."{char}"',
        f"ke{char}y",
    ):
        said = str(error_of(text))
        assert all(c.isprintable() for c in said.replace("\n", "")), repr(said)
        assert said.count("\n") == 2


def test_odd_characters_in_quotes_are_compared_as_they_are() -> None:
    odd = "\x00 \u202e \ud800 日本 \\ \" '"
    written = odd.replace("\\", "\\\\").replace('"', '\\"')
    row = MessageRow(MemoryMessage(("t", 0, 0), None, None, None, 1), lambda message: Shown("text", odd))
    assert compile_filter(f'value == "{written}" and value like "*{written[0]}*"', 0).matches(row)


def test_depth_length_lists_numbers_and_patterns_are_capped() -> None:
    deepest = "(" * DEPTH_MAX + 'key == "a"' + ")" * DEPTH_MAX
    compile_filter(deepest, 0)
    for deeper in (f"({deepest})", "not " * (DEPTH_MAX + 1) + 'key == "a"', "(" * 60_000, "not " * 16_000):
        error = error_of(deeper)
        assert "nested more than 50 deep" in error.sentence
        assert error.column == deeper.replace("not ", "(").find("(", 0) + 1 + DEPTH_MAX * (4 if deeper[0] == "n" else 1)
    compile_filter(f"offset in ({','.join(map(str, range(LIST_MAX)))})", 0)
    assert "the list is longer than 1,000" in str(error_of(f"offset in ({','.join(map(str, range(LIST_MAX + 1)))})"))
    compile_filter(f'key == "{"x" * (TEXT_MAX - 9)}"', 0)
    for text in (f'key == "{"x" * (TEXT_MAX - 8)}"', "x" * 1_000_000, "\x00" * 1_000_000):
        assert str(error_of(text)) == f"the filter has {len(text):,} characters: at most 65,536 are read"
    compile_filter(f'key like "{"*" * PATTERN_MAX}"', 0)
    assert "at most 1,000" in str(error_of(f'key like "{"*" * (PATTERN_MAX + 1)}"'))
    assert compile_filter(" or ".join(["hop == 1"] * 5_000), 0).needs.headers, "length alone needs no depth"


@pytest.mark.parametrize(
    "text",
    [
        "(" * TEXT_MAX,
        "not " * (TEXT_MAX // 4),
        "a" * TEXT_MAX,
        "a." * (TEXT_MAX // 2),
        "value" + ".x" * (TEXT_MAX // 2 - 4),
        '"' + "\\" * (TEXT_MAX - 1),
        "\n" * (TEXT_MAX - 1) + "x",
        "key in (" + "1," * (TEXT_MAX // 2 - 4),
        "9" * TEXT_MAX,
        "日" * TEXT_MAX,
        "hop == 1 or " * (TEXT_MAX // 12),
    ],
    ids=lambda text: text[:12],
)
def test_no_text_takes_long_to_refuse(text: str) -> None:
    started = time.process_time()
    error_of(text)
    assert time.process_time() - started < 2.0


@pytest.mark.parametrize("pattern", ["*" + "a*" * 400 + "b", "*" + "a?" * 400 + "b*", "*" + "a" * 900 + "b*"])
def test_a_pattern_takes_time_in_proportion_to_the_text(pattern: str) -> None:
    matches, text = glob(pattern), "a" * 300_000
    started = time.process_time()
    assert not matches(text)
    assert time.process_time() - started < 3.0, "tried again and again"


WORDS = [
    "key",
    "attempt",
    "value.x",
    "header.y",
    "age",
    "timestamp",
    "and",
    "or",
    "not",
    "(",
    ")",
    "in",
    "is",
    "null",
    ",",
]
WORDS += [
    "==",
    "!=",
    "<",
    ">=",
    "like",
    "contains",
    '"a"',
    "'*'",
    "3",
    "2h",
    "true",
    "=",
    '"',
    "\\",
    "\x00",
    "é",
    "1.5",
    ".",
]


@settings(max_examples=1_500, deadline=None)
@given(st.one_of(st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join), st.text(max_size=40)))
def test_any_text_is_a_filter_or_a_filter_error(text: str) -> None:
    row = MessageRow(MemoryMessage(("t", 0, 0), b"a", b"", None, 1), lambda message: Shown("json", {"x": [1]}))
    try:
        answer = compile_filter(text, 0).matches(row)
    except FilterError as error:
        refused: FilterError | None = error
    else:
        refused = None
        assert answer in (True, False)
    if refused is not None:
        assert refused.sentence
        assert 1 <= refused.column <= len(text) + 1
        assert str(refused).count("\n") in (0, 2)
