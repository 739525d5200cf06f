"""Case and punctuation only, by Whisper's basic normaliser."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version


class BasicNormalizer:
    name = "basic"
    version = f"1 (whisper-normalizer {version('whisper-normalizer')})"

    def __init__(self):
        from whisper_normalizer.basic import BasicTextNormalizer

        self._basic = BasicTextNormalizer()

    def rows(self, texts: Mapping[str, str], like: Mapping[str, str] | None = None) -> dict[str, str]:
        """The texts by utterance, normalised; ``like`` changes nothing here."""
        return {key: self._basic(text).strip() for key, text in texts.items()}
