"""Command lines: options with checked values, and one line for each mistake."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn


class OneLineParser(argparse.ArgumentParser):
    """Answers a mistake by one line; the exit status is 2."""

    def error(self, message: str) -> NoReturn:
        message = " ".join(message.split())
        print(f"{self.prog}: error: {message} (--help lists the options)", file=sys.stderr)
        sys.exit(2)


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Names the default where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.help is None or isinstance(action.default, bool | None):
            return action.help
        if action.default is argparse.SUPPRESS:
            return action.help
        shown = "%(default)s" if isinstance(action.default, Path) else "%(default)r"
        return f"{action.help} (default: {shown})"


class ExampleParser(OneLineParser):
    """The command line of an example: `--seed`, `--out`, and what the example adds.

    Args:
        script: `__file__` of the example; its results go to `out/<its name>` by default.
        description: what it does, the docstring.
    """

    def __init__(self, script: str, description: str | None):
        name = Path(script).stem
        super().__init__(
            prog=Path(script).name,
            usage="%(prog)s [options]",
            description=description,
            formatter_class=Formatter,
            allow_abbrev=False,
        )
        self.add_number("--seed", whole, 0, "of everything that is random")
        self.add_argument(
            "--out",
            type=lambda text: Path(text).expanduser(),
            default=Path("out") / name,
            metavar="DIR",
            help="folder for the results; files of an earlier run are replaced",
        )

    def add_number(self, name: str, kind: Callable, default: Any, help: str) -> None:
        metavar = "N" if isinstance(default, int) else "X"
        self.add_argument(name, type=kind, default=default, metavar=metavar, help=help)

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """Read a command line and make the folder `--out`; mistakes end the program."""
        options = self.parse_args(arguments)
        try:
            options.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self.error(f"--out: cannot make the folder {options.out}: {error.strerror}")
        return options


def number(convert: Callable, accepts: Callable[[Any], bool], what: str) -> Callable[[str], Any]:
    """The `type` of an option: text → a number that is accepted."""

    def read(text: str) -> Any:
        try:
            value = convert(text.replace("_", ""))
        except ValueError:
            value = None
        if value is None or not accepts(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return read


count = number(int, lambda n: n > 0, "a positive whole number")
whole = number(int, lambda n: n >= 0, "a whole number, zero or more")
length = number(int, lambda n: n >= 2, "a whole number, two or more")
byte_count = number(int, lambda n: 1 <= n <= 256, "a whole number from 1 to 256")
positive = number(float, lambda x: 0 < x < math.inf, "a positive number")
amount = number(float, lambda x: 0 <= x < math.inf, "a number, zero or more")
share = number(float, lambda x: 0 <= x < 1, "a number from 0 to below 1")
