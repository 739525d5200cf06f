"""Options that other trainers take and ours does not have: each is honoured, or refused by name.

One table per program. Options of the same name stand in speechllm/config.py; what stands in neither is an unknown
option.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from speechllm.errors import UserError
from speechllm.upstream import forced_aligner, fun_asr
from speechllm.upstream.rules import Note, Refuse, Rule, Same, Use

PROGRAMS = {module.PROGRAM: module.OPTIONS for module in (fun_asr, forced_aligner)}
OPTIONS = {key: rule for options in PROGRAMS.values() for key, rule in options.items()}


class Given(NamedTuple):
    """An option as it was given; ``key`` is empty for a word that sets none."""

    key: str
    value: str
    words: list[str]
    file: str = ""  # the YAML it stands in


def translate(words: list[str]) -> list[str]:
    """The command line, with other programs' options turned into ours; also those in the YAML of ``--config``.

    Raises:
        UserError: an option that cannot be honoured, or two that contradict each other.
    """
    given = list(_given(words))
    _refuse_contradictions(given)
    first, early, late = [], [], []
    for one in given:
        rule = _rule(one, given)
        if rule is None:
            early += one.words
        elif isinstance(rule, Refuse):
            place = f"{one.file}: " if one.file else ""
            program = next(name for name, options in PROGRAMS.items() if one.key in options)
            raise UserError(f"{place}{one.key}={one.value} is an option of {program}, not taken here: {rule.mend}")
        elif isinstance(rule, Use):
            (late if rule.last else early).extend(f"--{word}" for word in _filled(rule, one))
            first += [f"--{word}" for word in rule.unless.split()]
    return first + early + late


def notes(words: list[str]) -> list[str]:
    """How each option of another program is honoured, a line each; for words that :func:`translate` takes."""
    given = list(_given(words))
    values = {one.key: one.value.lower() for one in given}
    told = []
    for one in given:
        rule, part = _rule(one, given), one.key.removesuffix(".freeze")
        if isinstance(rule, Use):
            unless = f"unless set otherwise, {rule.unless}" if rule.unless else ""
            told.append((one, "; ".join(filter(None, [" ".join(_filled(rule, one)), unless, rule.why]))))
        elif rule:
            told.append((one, rule.why))
        elif one.key != part and one.value.lower() == "false" and values.get(f"{part}.use_lora") == "true":
            told.append((one, "its low-rank updates are trained, its weights kept, since use_lora=true"))
    return [f"{one.key}={one.value}: {text}" for one, text in told]


def _rule(one: Given, given: list[Given]) -> Note | Use | Refuse | None:
    rule: Rule | dict[str, Rule] | None = OPTIONS.get(one.key)
    if isinstance(rule, dict):
        rule = rule.get(one.value.lower(), rule.get("*"))
    if isinstance(rule, Same):
        return Note(rule.why) if (rule.key, one.value) in {other[:2] for other in given} else Refuse(rule.mend)
    return rule


def _filled(rule: Use, one: Given) -> list[str]:
    return [word.format(one.value) for word in rule.words.split()]


def _refuse_contradictions(given: list[Given]) -> None:
    values = {one.key: one.value.lower() for one in given}
    lora_only = values.get("lora_only") == "true"
    lora = any(key.endswith("_conf.use_lora") and value == "true" for key, value in values.items())
    if lora_only and not lora:
        raise UserError("lora_only=true freezes all but LoRA, and no part has it; add llm_conf.use_lora=true")
    peft = next((one for one in given if one.key.startswith("peft_config.")), None)
    if peft and not lora and "use_peft" not in values:
        raise UserError(f"{peft.key} is set, and use_peft is not; add use_peft: true for LoRA on the LLM, or false")
    if values.get("freeze_policy") == "auto":
        typed = [one.key for one in given if one.key.endswith("_conf.freeze") and not one.file]
        for key in typed + ["lora_only"] * lora_only:
            raise UserError(f"freeze_policy=auto decides what is frozen, and so does {key}; give one of them")


def _given(words: list[str]) -> Iterator[Given]:
    rest = list(words)
    while rest:
        word = rest.pop(0)
        option = re.fullmatch(r"(\+\+|--)([A-Za-z][\w.\-]*)(?:=(.*))?", word, re.DOTALL)
        if not option:
            yield Given("", "", [word])
            continue
        key, value, said = option[2].replace("-", "_"), option[3], [word]
        if value is None and rest and not rest[0].startswith(("++", "--")):
            value = rest.pop(0)
            said.append(value)
        elif value and option[1] == "++" and value[0] in "'\"" and value[0] == value[1:][-1:]:
            value = value[1:-1]  # hydra takes quotes off
            said = [f"++{key}={value}"]
        inside = list(_yaml(value)) if key == "config" and value else []
        if any(_rule(one, inside) for one in inside):
            yield from inside
        else:  # the parser reads the file, and its messages name it
            yield Given(key, value or "", said)
            yield from (one._replace(words=[]) for one in inside)


def _yaml(path: str) -> Iterator[Given]:
    """The options in a YAML; none where it cannot be read, which the parser will say."""
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            tree = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return
    for key, value in _leaves(tree, ""):
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield Given(key, text, [f"--{key}={text}"], path)


def _leaves(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """``a.b`` and its value, for every value in nested dicts."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _unquoted(value)


def _unquoted(value: Any) -> Any:
    """Without the typographic quotes that web pages make of straight ones, and that YAML takes for letters."""
    if isinstance(value, list):
        return [_unquoted(one) for one in value]
    return value[1:-1] if isinstance(value, str) and re.fullmatch("“.*”", value) else value
