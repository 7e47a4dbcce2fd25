"""Text -> checked tree, by recursive descent. Everything that can be wrong with a filter is found here, with its column."""

from __future__ import annotations

from pipeline.filters.checking import Literal, Wrong, fit
from pipeline.filters.errors import FilterError
from pipeline.filters.fields import Field, Kind, find_field
from pipeline.filters.glob import PATTERN_MAX
from pipeline.filters.tokens import Token, tokens
from pipeline.filters.tree import All, Any_, Compare, IsNull, Node, Not, Value, Within

DEPTH_MAX = 50
LIST_MAX = 1_000

_SYMBOLS = frozenset({"==", "!=", "<", "<=", ">", ">="})
_WORDS = frozenset({"contains", "startswith", "endswith", "like"})
_KEYWORDS = _WORDS | {"and", "or", "not", "in", "is", "null", "true", "false"}
_OPERATORS = "== != < <= > >= in, not in, contains, startswith, endswith, like, is null or is not null"


def parse(text: str) -> Node:
    """Raises `FilterError`."""
    return _Parser(text).whole()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(tokens(text))
        self._next = 0
        self._depth = 0

    def whole(self) -> Node:
        if len(self._tokens) == 1:
            raise self._error(
                'the filter is empty: write a condition such as attempt >= 3 or key == "run-1"', self._tokens[0]
            )
        node = self._either()
        token = self._tokens[self._next]
        if token.kind != "end":
            closing = token.value == ")" and token.kind == "op"
            raise self._error(
                "this ) closes nothing" if closing else "expected and, or, or the end of the filter here", token
            )
        return node

    def _either(self) -> Node:
        terms = [self._both()]
        while self._take("or"):
            terms.append(self._both())
        return terms[0] if len(terms) == 1 else Any_(tuple(terms))

    def _both(self) -> Node:
        terms = [self._term()]
        while self._take("and"):
            terms.append(self._term())
        return terms[0] if len(terms) == 1 else All(tuple(terms))

    def _term(self) -> Node:
        token = self._tokens[self._next]
        if self._word(token) != "not" and token[:2] != ("op", "("):
            return self._condition()
        self._next += 1
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise self._error(f"the filter is nested more than {DEPTH_MAX} deep: say it with fewer parentheses", token)
        if token.kind == "name":
            node: Node = Not(self._term())
        else:
            node = self._either()
            self._expect(")", f"a ) is missing for the ( at column {token.at + 1}")
        self._depth -= 1
        return node

    def _condition(self) -> Node:
        field = self._field()
        token = self._tokens[self._next]
        word = self._word(token)
        self._next += 1
        if word == "is":
            negated = self._take("not")
            if not self._take("null"):
                raise self._error("after is comes null or not null", self._tokens[self._next])
            return IsNull(field, negated)
        negated = word == "not"
        if negated:
            token = self._tokens[self._next]
            word = self._word(token)
            self._next += 1
        if word == "in":
            return self._within(field, negated)
        if word in _WORDS:
            return self._compare(field, word, token, negated)
        if not negated and token.kind == "op" and token.value in _SYMBOLS:
            return self._compare(field, str(token.value), token, False)
        wanted = "in, contains, startswith, endswith or like" if negated else _OPERATORS
        raise self._error(f"after {'not' if negated else field.name} comes {wanted}", token)

    def _compare(self, field: Field, op: str, operator: Token, negated: bool) -> Node:
        value = self._value(field, op, operator)
        if op == "like" and len(str(value)) > PATTERN_MAX:
            at = self._tokens[self._next - 1]
            raise self._error(f"the pattern has {len(str(value)):,} characters: at most {PATTERN_MAX:,}", at)
        return Compare(field, op, value, negated)

    def _within(self, field: Field, negated: bool) -> Node:
        opening = self._tokens[self._next]
        self._expect("(", 'after in comes a list such as ("a", "b")')
        values = [self._value(field, "in", opening)]
        while self._tokens[self._next][:2] == ("op", ","):
            self._next += 1
            if len(values) == LIST_MAX:
                raise self._error(f"the list is longer than {LIST_MAX:,}", self._tokens[self._next])
            values.append(self._value(field, "in", opening))
        self._expect(")", f"a , or ) is missing in the list that begins at column {opening.at + 1}")
        return Within(field, tuple(values), negated)

    def _field(self) -> Field:
        token = self._tokens[self._next]
        word = self._word(token)
        if token.kind != "name" or word in _KEYWORDS:
            what = f"{word} is not a field" if word in _KEYWORDS else "a condition begins with a field"
            raise self._error(f"{what}: write it such as attempt >= 3", token)
        self._next += 1
        assert isinstance(token.value, tuple)
        field = find_field(token.value)
        if isinstance(field, str):
            raise self._error(field, token)
        return field

    def _value(self, field: Field, op: str, operator: Token) -> Value:
        token = self._tokens[self._next]
        word = self._word(token)
        literal: Literal
        if token.kind in ("text", "number", "duration"):
            literal = Literal(token.kind, token.value)  # type: ignore[arg-type]
        elif word in ("true", "false"):
            literal = Literal("bool", word == "true")
        else:
            raise self._error(self._no_literal(field, op, token, word), token)
        self._next += 1
        value = fit(field, op, literal)
        if isinstance(value, Wrong):
            raise self._error(value.sentence, operator if value.operator else token)
        return value

    def _no_literal(self, field: Field, op: str, token: Token, word: str) -> str:
        if word == "null":
            return f"null is not compared: write {field.name} is null, or is not null"
        if token.kind == "name":
            written = ".".join(token.value) if isinstance(token.value, tuple) else ""
            if isinstance(find_field(token.value), Field):  # type: ignore[arg-type]
                return f"{written[:60]} is a field, and fields are compared with values only"
            return f'text is put in quotes: write "{written[:60]}"'
        example = {Kind.NUMBER: "3", Kind.DURATION: "2h", Kind.TIME: '"2026-01-31T12:00:00Z"'}.get(field.kind, '"text"')
        return f"a value is missing after {op}: write one such as {example}"

    def _word(self, token: Token) -> str:
        """A name of one part, in lower case: what may be a keyword."""
        return token.value[0].lower() if isinstance(token.value, tuple) and len(token.value) == 1 else ""

    def _take(self, word: str) -> bool:
        if self._word(self._tokens[self._next]) != word:
            return False
        self._next += 1
        return True

    def _expect(self, operator: str, otherwise: str) -> None:
        if self._tokens[self._next][:2] != ("op", operator):
            raise self._error(otherwise, self._tokens[self._next])
        self._next += 1

    def _error(self, sentence: str, token: Token) -> FilterError:
        return FilterError(sentence, self._text, token.at)
