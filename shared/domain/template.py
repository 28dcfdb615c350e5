"""Shell-style variables in image names and file paths.

The dialect is that of the library KMM uses (github.com/a8m/envsubst): `$VAR`, `${VAR}`, defaults,
alternatives and `$$`. Where that library garbles its input (a default made of several parts, braces inside
braces), this one does what a POSIX shell does.
"""

import re
from collections.abc import Mapping

from shared.domain.errors import PermanentError

MAX_TEMPLATE_CHARACTERS = 4096
MAX_NESTING = 8

_NAME = re.compile(r"\w*")
_OPERATOR = re.compile(r":?[-=+]")


class InvalidTemplate(PermanentError):
    """A template that cannot be expanded; the message quotes it."""

    reason = "InvalidTemplate"


def expand(template: str, variables: Mapping[str, str]) -> str:
    """Return `template` with its variables replaced by their values, which are not looked at again.

    * `$VAR`, `${VAR}`: the value; nothing if unset. A dollar sign that starts no variable stays.
    * `${VAR:-word}`, `${VAR:=word}`: the word if VAR is unset or empty.
    * `${VAR-word}`, `${VAR=word}`: the word if VAR is unset.
    * `${VAR+word}`, `${VAR:+word}`: the word if VAR is set, even to nothing; else nothing.
    * `$$`: one dollar sign, so that `$$VAR` gives `$VAR`.
    * Any other text after the name is dropped (`${VAR%x}` is `${VAR}`).

    A word may contain variables, up to `MAX_NESTING` deep. Time is linear in the template.

    Raises:
        InvalidTemplate: a `${` that is not closed on its line, too deep nesting, or more than
            `MAX_TEMPLATE_CHARACTERS` characters.
    """
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise InvalidTemplate(
            f"template {_shown(template)}: {len(template)} characters; at most {MAX_TEMPLATE_CHARACTERS}"
        )
    return _text(template, 0, variables, depth=0)[0]


def _text(template: str, position: int, variables: Mapping[str, str], depth: int) -> tuple[str, int]:
    """Expand from `position` to the end, or inside braces (`depth` > 0) to behind the closing one."""
    if depth > MAX_NESTING:
        raise InvalidTemplate(f"template {_shown(template)}: more than {MAX_NESTING} levels of ${{…}}")
    parts: list[str] = []
    while position < len(template):
        character = template[position]
        if depth and character == "}":
            return "".join(parts), position + 1
        if depth and character in "\r\n":
            break
        if character == "$":
            part, position = _dollar(template, position + 1, variables, depth)
        else:
            part, position = character, position + 1
        parts.append(part)
    if depth:
        raise InvalidTemplate(f"template {_shown(template)}: a ${{ is not closed; write ${{NAME}}")
    return "".join(parts), position


def _dollar(template: str, position: int, variables: Mapping[str, str], depth: int) -> tuple[str, int]:
    """Expand what follows a dollar sign; `position` is behind it."""
    following = template[position : position + 1]
    if following == "$":
        return "$", position + 1
    if following == "{":
        return _braces(template, position + 1, variables, depth + 1)
    name = _name(template, position)
    if name in {"", "_"}:
        return f"${name}", position + len(name)
    return variables.get(name, ""), position + len(name)


def _braces(template: str, position: int, variables: Mapping[str, str], depth: int) -> tuple[str, int]:
    """Expand what follows `${`; `position` is behind it."""
    name = _name(template, position)
    if name in {"", "_"}:
        inside, end = _text(template, position, variables, depth)
        return f"${{{inside}}}", end
    operator = _OPERATOR.match(template, position + len(name))
    word_start = operator.end() if operator else position + len(name)
    word, end = _text(template, word_start, variables, depth)
    value = variables.get(name)
    match operator.group() if operator else "":
        case ":-" | ":=":
            return value or word, end
        case "-" | "=":
            return (word if value is None else value), end
        case "+" | ":+":
            return ("" if value is None else word), end
        case _:
            return value or "", end


def _name(template: str, position: int) -> str:
    found = _NAME.match(template, position)
    return found.group() if found else ""


def _shown(text: str) -> str:
    return repr(text if len(text) <= 120 else text[:120] + "…")
