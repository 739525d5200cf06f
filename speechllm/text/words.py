"""The words that a text is aligned by: those that Qwen3-ForcedAligner's processor finds."""

from __future__ import annotations

from speechllm.errors import UserError


def split(text: str, language: str = "") -> list[str]:
    """Chinese characters one by one, else what stands between blanks; punctuation is dropped, but for apostrophes.

    Args:
        language: a name or a code; Japanese (by nagisa) and Korean (by soynlp) go their own ways, others as above.

    Raises:
        UserError: the package that finds the language's words is not installed.
    """
    from transformers import Qwen3ASRProcessor
    from transformers.models.qwen3_asr.processing_qwen3_asr import LANGUAGE_CODE_TO_NAME

    try:
        name = LANGUAGE_CODE_TO_NAME.get(language.lower(), language)  # the processor takes codes for other languages
        return Qwen3ASRProcessor.split_words_for_alignment(None, text, name)
    except ImportError as error:
        raise UserError(f"{error} (with its release pinned: pip install -e '.[align]')") from error
