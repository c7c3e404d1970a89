"""Filters of containers, in the syntax that containerd's clients know.

A filter is conditions with commas between them, all of which must hold: FIELD (it is there),
FIELD==VALUE, FIELD!=VALUE, FIELD~=EXPRESSION. A label that is not there counts as an empty one
for != and ~=. Values, and parts of a field's name, may be quoted: "…" with Go's escapes. An
expression may also be /…/ or |…|, in which only the quote itself is escaped.

Expressions are RE2's: what a stranger writes takes time in proportion to its text, and no more.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NoReturn

from shim.errors import InvalidArgument, ResourceExhausted
from shim.metadata.expressions import searcher
from shim.metadata.values import Container

_LIMIT = 4096  # characters of a filter
_SECONDS = 1.0  # of the processor, for all containers of one call

_SPACE = re.compile(r"[ \t]*")
_NAME = re.compile(r"[A-Za-z0-9_/-]+")
_OPERATOR = re.compile(r"==|!=|~=")
_VALUE = re.compile(r"[^\s,]+")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_EXPRESSION = re.compile(r"/(?:[^/\\]|\\.)*/|\|(?:[^|\\]|\\.)*\|", re.DOTALL)
_ESCAPE = re.compile(
    r"\\(?:([abfnrtv\\\"'])|(?:x([0-7][0-9A-Fa-f])|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8}))|.)",
    re.DOTALL,
)
_ESCAPED = dict(zip("abfnrtv\\\"'", "\a\b\f\n\r\t\v\\\"'", strict=True))

_NO_CODE = 0x110000  # the first number that is no character

_PLAIN = ("id", "image", "runtime")
_FIELDS = "id, labels.KEY, image and runtime"

_Predicate = Callable[[str], bool]


@dataclass(frozen=True)
class _Condition:
    """What one field must be: `agrees` is asked of its value, empty for a label not there."""

    field: str  # "id", "image", "runtime" or "labels"
    label: str
    agrees: _Predicate
    needs_presence: bool

    def holds(self, container: Container) -> bool:
        if self.field != "labels":
            value: str = getattr(container, self.field)
            present = value != ""
        else:
            value = container.labels.get(self.label, "")
            present = self.label in container.labels
        return (present or not self.needs_presence) and self.agrees(value)


class Filter:
    """What a text asks of containers. Raises InvalidArgument that names the place of an error."""

    def __init__(self, text: str) -> None:
        self._conditions = _Parser(text).conditions() if text else []

    def select(self, containers: Iterable[Container]) -> list[Container]:
        """Those that match. Raises ResourceExhausted when that takes too long."""
        end = time.thread_time() + _SECONDS
        return [container for container in containers if self._matches(container, end)]

    def _matches(self, container: Container, end: float) -> bool:
        for condition in self._conditions:
            if time.thread_time() > end:
                raise ResourceExhausted(
                    f"the filter takes more than {_SECONDS:g} s of the processor; ask for less"
                )
            if not condition.holds(container):
                return False
        return True


class _Parser:
    """Reads a filter from the left to the right; `_at` is the next character's index."""

    def __init__(self, text: str) -> None:
        if len(text) > _LIMIT:
            raise InvalidArgument(f"the filter has more than {_LIMIT} characters")
        self._text = text
        self._at = 0

    def conditions(self) -> list[_Condition]:
        found = [self._condition()]
        while self._take_character(","):
            found.append(self._condition())
        if self._at < len(self._text):
            self._fail("a comma or the end")
        return found

    def _condition(self) -> _Condition:
        found = self._bare_condition()
        self._skip_space()
        return found

    def _bare_condition(self) -> _Condition:
        field, label = self._field()
        self._skip_space()
        operator = self._take(_OPERATOR)
        if operator is None:
            return _Condition(field, label, lambda value: True, needs_presence=True)
        self._skip_space()
        if operator == "~=":
            return _Condition(field, label, self._expression(), needs_presence=False)
        wanted = self._value()
        if operator == "==":
            return _Condition(field, label, lambda value: value == wanted, needs_presence=True)
        return _Condition(field, label, lambda value: value != wanted, needs_presence=False)

    def _field(self) -> tuple[str, str]:
        """The field, and the label's key."""
        self._skip_space()
        start = self._at
        names = [self._name()]
        while self._take_character("."):
            names.append(self._name())
        field, *rest = names
        if field not in (_PLAIN if not rest else ("labels",)):
            self._fail(f"one of {_FIELDS}", start)
        return field, ".".join(rest)

    def _name(self) -> str:
        name = self._take_quoted() if self._is_next('"') else self._take(_NAME)
        if not name:
            self._fail("the name of a field")
        return name

    def _value(self) -> str:
        value = self._take_quoted() if self._is_next('"') else self._take(_VALUE)
        if value is None:
            self._fail("a value")
        return value

    def _expression(self) -> _Predicate:
        start = self._at
        quoted = self._take(_EXPRESSION)
        if quoted is not None:
            pattern = quoted[1:-1].replace(f"\\{quoted[0]}", quoted[0])
        elif self._is_next("/") or self._is_next("|"):
            self._fail("an expression whose quote is closed")
        else:
            pattern = self._value()
        try:
            return searcher(pattern)
        except InvalidArgument as error:
            raise InvalidArgument(
                f"the filter is wrong at character {start + 1}: {error}"
            ) from error

    def _take_quoted(self) -> str:
        inside = self._at + 1
        quoted = self._take(_QUOTED)
        if quoted is None:
            self._fail("a text whose quote is closed")
        return _ESCAPE.sub(lambda found: self._unescape(found, inside), quoted[1:-1])

    def _unescape(self, found: re.Match[str], inside: int) -> str:
        if found[1]:
            return _ESCAPED[found[1]]
        digits = found[2] or found[3] or found[4]
        code = int(digits, 16) if digits else _NO_CODE
        if code >= _NO_CODE or 0xD800 <= code < 0xE000:
            self._fail("an escape of Go's; a backslash itself is \\\\", inside + found.start())
        return chr(code)

    def _take(self, pattern: re.Pattern[str]) -> str | None:
        found = pattern.match(self._text, self._at)
        if found is None:
            return None
        self._at = found.end()
        return found[0]

    def _take_character(self, character: str) -> bool:
        taken = self._is_next(character)
        self._at += taken
        return taken

    def _is_next(self, character: str) -> bool:
        return self._text.startswith(character, self._at)

    def _skip_space(self) -> None:
        self._take(_SPACE)

    def _fail(self, expected: str, at: int | None = None) -> NoReturn:
        place = self._at if at is None else at
        found = repr(self._text[place : place + 20]) if place < len(self._text) else "the end"
        raise InvalidArgument(
            f"the filter is wrong at character {place + 1}: expected {expected}, found {found}"
        )
