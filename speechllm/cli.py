"""The one way in for every tool: typed options, ``++key=value`` or ``--key=value``, one-line errors."""

from __future__ import annotations

import difflib
import itertools
import logging
import re
import sys
from collections.abc import Callable
from typing import Any

from speechllm.errors import UserError


def suggest(word: str, known: list[str]) -> str:
    """`` Did you mean ...?`` or nothing: the nearest of the known names, whole or by its last part."""
    last = {name.rsplit(".", 1)[-1]: name for name in reversed(known)}
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    near = near or [last[hit] for hit in difflib.get_close_matches(word.rsplit(".", 1)[-1], last, n=1, cutoff=0.6)]
    return f" Did you mean {near[0]}?" if near else ""


def parse(options_class: type, argv: list[str], description: str = "", positional: tuple[str, ...] = ()) -> Any:
    """An instance of the dataclass ``options_class`` from ``++a.b=c``, ``--a.b=c``, ``--a.b c`` or ``--config x.yaml``.

    Args:
        argv: the words; dashes within an option's name count as underscores.
        positional: options that the first words may give without their names.

    Raises:
        UserError: an unknown option, from the command line or the YAML, or a value of the wrong type.
    """
    import jsonargparse

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML with the options below; later options win.")
    parser.add_class_arguments(options_class)
    known = [name.lstrip("-") for action in parser._actions for name in action.option_strings]
    bare = list(itertools.takewhile(lambda word: not word.startswith(("+", "-")), argv))[: len(positional)]
    named = [f"--{name}={word}" for name, word in zip(positional, bare, strict=False)]
    words = named + [re.sub(r"^(?:\+\+|--)[\w.\-]+", _option, word) for word in argv[len(bare) :]]
    for word in words:
        name = re.match(r"--([\w.\-]+)", word)
        if name and name[1] not in known:
            raise UserError(f"unknown option {name[1]}.{suggest(name[1], known)} --help lists all options")
    try:
        namespace = parser.parse_args(words)
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        files = [word for word in words if word.endswith((".yaml", ".yml"))]
        raise UserError(_explain(str(error), known) + (f" (with {', '.join(files)})" if files else "")) from error
    values = vars(parser.instantiate(namespace))
    values.pop("config")
    return options_class(**values)


def _option(name: re.Match) -> str:
    return "--" + name[0][2:].replace("-", "_")


def _explain(message: str, known: list[str]) -> str:
    """jsonargparse's message on one line, with the nearest known name where it speaks of an unknown key."""
    group = re.search(r"Group '([\w.]+)'", message)
    unknown = re.search(r"[Oo]ption '([\w.]+)'", message)
    name = ".".join(part[1] for part in (group, unknown) if part)
    return " ".join(message.split()) + (suggest(name, known) if unknown else "")


def run(
    main: Callable[[Any], None],
    options_class: type,
    description: str = "",
    positional: tuple[str, ...] = (),
    translate: Callable[[list[str]], list[str]] = list,
) -> None:
    """Parse ``sys.argv``, call ``main(options)``, exit 2 on a bad option and 1 on a bad input, with one line each.

    Args:
        translate: turns the words as typed into words that ``parse`` takes.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.captureWarnings(True)
    try:
        options = parse(options_class, translate(sys.argv[1:]), description, positional)
    except UserError as error:
        sys.exit(_say(error, 2))
    try:
        main(options)
    except UserError as error:
        sys.exit(_say(error, 1))
    except KeyboardInterrupt:
        sys.exit(_say("interrupted; the same command goes on where it stopped", 130))


def _say(message: object, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
