"""The prompts that Fun-ASR-Nano was trained with; training and decoding take them from here."""

from __future__ import annotations

import re

from speechllm.errors import UserError
from speechllm.sample import Prompt

LANGUAGES = {"zh": "中文", "en": "英文", "ja": "日文"}
CONTEXT = "请结合上下文信息，更加准确地完成语音转写任务。如果没有相关信息，我们会留空。\n\n\n**上下文信息：**\n\n\n"
AUDIO = "<audio>"
HOTWORDS = re.compile(rf"\A{re.escape(CONTEXT)}热词列表：\[.*\]\n")


def asr_prompt(language: str | None = None, itn: bool = True) -> Prompt:
    """Ask for a transcript, in the words of upstream's native runtime.

    Args:
        language: of the text: a key of LANGUAGES, or the Chinese name of any language, such as 韩文; None: as spoken.
        itn: let the model write numbers, dates and the like in figures.

    Raises:
        UserError: a language that is neither.
    """
    name = LANGUAGES.get(language or "", language)
    if name and name.isascii():
        raise UserError(f"unknown language {name}; give {', '.join(LANGUAGES)} or its Chinese name, such as 韩文")
    target = f"成{name}" if name else ""
    return Prompt(before=f"语音转写{target}{'' if itn else '，不进行文本规整'}：")


def asked(text: str, language: str, itn: bool) -> Prompt:
    """What the options of a tool ask: own words, or a transcript. Raises UserError: both."""
    if text and (language or not itn):
        raise UserError("++prompt says all that is asked; leave out ++language and ++itn, or ++prompt")
    return own_prompt(text) if text else asr_prompt(language, itn)


def own_prompt(text: str) -> Prompt:
    """Ask in any words: ``<audio>`` in the text says where the audio stands; without it, at the end.

    Raises:
        UserError: two audios, or nothing else.
    """
    before, *after = text.split(AUDIO)
    if len(after) > 1 or not "".join([before, *after]).strip():
        raise UserError(f"the prompt {text!r} does not ask about one audio; write words, and at most one {AUDIO}")
    return Prompt(before=before, after="".join(after))


def asked_like(text: str, usual: Prompt) -> Prompt:
    """The usual prompt with other words; without ``<audio>`` in them, the audio stays on the side where it is."""
    if AUDIO not in text and usual.after:
        text = f"{AUDIO}{text}" if text else ""
    return own_prompt(text)._replace(system=usual.system) if text else usual


def with_hotwords(prompt: Prompt, words: list[str]) -> Prompt:
    """The prompt, preceded by words that may occur, as upstream's native runtime writes them (its ``get_prompt``).

    Without words there is no heading. Upstream's trainer puts one before such rows too, and its runtime does not: the
    model would be asked otherwise than it was trained.
    """
    plain = without_hotwords(prompt)
    return plain._replace(before=f"{CONTEXT}热词列表：[{', '.join(words)}]\n{plain.before}") if words else plain


def without_hotwords(prompt: Prompt) -> Prompt:
    """The prompt that stays when the words of one utterance are taken from it."""
    return prompt._replace(before=HOTWORDS.sub("", prompt.before))
