"""The ``minray`` command: parses the command line and hands it to the command's own module.

Owns the list of commands and nothing else. A command is a name, one line of help, and two functions of
its module: ``add_arguments(parser)`` and ``run(arguments) -> exit status``. Only the chosen command's
module is imported, so that ``minray --version`` stays quick. Errors of the user go to standard error with
exit status 2 (argparse's), errors of the command with 1.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """One command: where it lives, and what ``minray --help`` says of it."""

    module: str
    help: str


COMMANDS: dict[str, Command] = {
    "start": Command("minray.cli.start", "start the head of a cluster on this machine, or let this machine join one"),
    "stop": Command("minray.cli.stop", "end your nodes of a cluster on this machine"),
    "status": Command("minray.cli.status", "show a cluster's nodes, what is in use, and what waits and why"),
    "health-check": Command("minray.cli.health_check", "exit with 0 if a cluster answers, else with 1"),
    "microbenchmark": Command(
        "minray.cli.microbenchmark.command",
        "measure this machine: minray, the raw floors, the standard library's pools, and Ray if it is there",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. ``argv`` defaults to the process's own."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(words)
    arguments = parser.parse_args(words)
    if arguments.command is None:
        parser.print_help()
        return 2
    module = importlib.import_module(COMMANDS[arguments.command].module)
    try:
        status: int = module.run(arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `minray … | head`: the reader has left, and the interpreter's own flush must not complain.
        sys.stderr.close()
        return 1
    return status


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="minray", description="Ray's programming model in pure Python.", allow_abbrev=False
    )
    parser.add_argument("--version", action=_Version, help="print minray's version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.help, allow_abbrev=False)
        if name in words:
            importlib.import_module(command.module).add_arguments(sub)
    return parser


class _Version(argparse.Action):
    """``--version``: reads the version only when asked for it."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import minray

        print(f"minray {minray.__version__}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
