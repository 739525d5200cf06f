"""The prompts that Fun-ASR-Nano was trained with; training and decoding take them from here."""

from __future__ import annotations

from speechllm.errors import UserError
from speechllm.sample import Prompt

LANGUAGES = {"zh": "中文", "en": "英文", "ja": "日文"}


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
