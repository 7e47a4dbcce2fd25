"""Folding: what differs in numbers, ids, quoted text and paths is one; what differs in words is not; hostile text costs little."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dead_letters.folding import FOLDED_CHARACTERS_MAX, TEXT_CHARACTERS_MAX, fold


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("rate limit: 429, retry after 12.5 s", "rate limit: <n> retry after <n> s"),
        ("timed out after 30s", "timed out after <n>"),
        ("connection to 10.0.0.1:9092 failed", "connection to <n> failed"),
        ("no run 3f1c6f5e-1d2c-4a5b-8c9d-0123456789ab", "no run <uuid>"),
        ("KeyError: 'tenant-77' at 0x7f3a2b", "KeyError: <text> at <hex>"),
        ('field "amount" of invoice inv-2026-0007', "field <text> of invoice <id>"),
        ("GET https://api.example.com/v1/runs/8f2c: 503", "GET <url> <n>"),
        ("no file /var/lib/agents/run_77/state.json", "no file <path>"),
        ("user ana@example.com not found", "user <mail> not found"),
        ("since 2026-05-12T10:00:00Z", "since <time>"),
        ("can't find it in the user's list", "can't find it in the user's list"),
        ("ids 1, 2, 3, 4", "ids <n>"),
        ("utf8 is not valid", "utf# is not valid"),
        ("  two \n lines\t", "two lines"),
        ("", ""),
    ],
)
def test_examples(text: str, folded: str) -> None:
    assert fold(text) == folded


def test_what_differs_in_details_folds_to_one_and_what_differs_in_words_does_not() -> None:
    chance = random.Random(7)

    def one(word: str) -> str:
        number, hexa = chance.randrange(10**9), f"{chance.randrange(16**12):012x}"
        return (
            f"model call run-{number} {word} after {chance.randrange(9000)} ms: '{hexa}' in /srv/{hexa}/{number}.json"
        )

    assert len({fold(one("failed")) for _ in range(500)}) == 1
    assert fold(one("failed")) != fold(one("refused"))


@given(st.text(max_size=3_000))
def test_any_text_folds_to_a_short_line(text: str) -> None:
    folded = fold(text)
    assert len(folded) <= FOLDED_CHARACTERS_MAX
    assert "\n" not in folded


@given(
    st.text(alphabet="ab-_./:'\"0 ", max_size=80),
    st.dictionaries(st.sampled_from("0123456789"), st.sampled_from("0123456789")),
)
def test_digits_do_not_matter(text: str, other: dict[str, str]) -> None:
    assert fold(text) == fold("".join(other.get(char, char) for char in text))


@pytest.mark.parametrize(
    "piece",
    ["a-", "a_", "a1", "0", "/a", "'", '"', "a.b-", "1,", "x@", "http://", "\\a", "0x", "-", "`a", "a" * 150 + " 1"],
)
def test_hostile_text_costs_no_more_than_its_length(piece: str) -> None:
    text = (piece * TEXT_CHARACTERS_MAX)[: TEXT_CHARACTERS_MAX - 1] + "!"
    began = time.process_time()
    for extra in range(20):
        fold(text[extra:] + " " + "ab"[extra % 2] * extra)
    assert (time.process_time() - began) / 20 < 0.01, "10 ms for one kilobyte"
