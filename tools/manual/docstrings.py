"""How griffe reads docstrings of refax: a section `Example:` holds a doctest."""

import re
from typing import Any

import griffe  # pyright: ignore[reportMissingImports]

DOCTEST = re.compile(r"^( *)>>> .*(?:\n\1(?! *$).*)*", re.MULTILINE)


class Examples(griffe.Extension):
    """Reads `Example:` as `Examples:`, and fences the doctests that stand outside of it."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring is not None:
            head, name, tail = obj.docstring.value.partition("Example:\n")
            obj.docstring.value = fenced(head) + ("Examples:\n" if name else "") + tail


def fenced(text: str) -> str:
    def fence(match: re.Match[str]) -> str:
        body = "\n".join(line.removeprefix(match[1]) for line in match.group().splitlines())
        return f"```pycon\n{body}\n```"

    return DOCTEST.sub(fence, text)
