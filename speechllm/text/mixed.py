"""One form for text in which languages are mixed, from the libraries that are kept for each of them.

Fun-ASR's tools/whisper_mix_normalize.py is the model for what goes to which library; the rules between the libraries
are ours, so scores of the two are not comparable.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from itertools import groupby

from speechllm.errors import UserError

HAN = "\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
KANA = "\u3041-\u3096\u30a1-\u30fa\uff66-\uff9d"
HANGUL = "\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3"
LATIN = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f"

QUOTES = str.maketrans("\u2018\u2019\u02bc\uff07", "'" * 4)
# Other ways to write a character (５, ½, ㎏) become the plain one, but for those that the Chinese grammar knows, and
# the full-width comma, which as a plain one would join two numbers.
VARIANTS = re.compile("[^²³℃℉，]+")
SIGNS = QUOTES | str.maketrans({"\u2044": "/", "\u2212": "-", "\u301c": "~"})
TAG = re.compile(r"<[^<>]*>|\[[^\[\]]*\]")
BESIDE_HAN = re.compile(rf"(?<=[{HAN}])\s+|\s+(?=[{HAN}])|(?<=\d)\s+(?=[%℃°])")
THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
NAME_NUMBER = re.compile(rf"(?<=[{LATIN}])-(?=\d)")  # COVID-19 is not minus nineteen
# English inside Chinese. Letters that follow a digit are left alone: they may be a unit, and mm is no hesitation there.
ENGLISH = re.compile(rf"(?<![\d{LATIN}])(?<!\d )[{LATIN}]+(?:[' -]+[{LATIN}]+)*")
ORDINAL = re.compile(r"(\d+(?:st|nd|rd|th)(?![a-z])|\d{3,}s(?![a-z]))")  # what the Chinese grammar takes for seconds
# What a digit does not tell: 1 is read 一 or 幺, 2 is 二 or 两. The grammar has to guess, so both come out as one.
SPOKEN = str.maketrans("幺〇两", "一零二")
BETWEEN_HAN = re.compile(rf"(?<=[{HAN}])\s+(?=[{HAN}])")
EDGE_OF_HAN = re.compile(rf"(?<=[{HAN}])(?=[a-z0-9])|(?<=[a-z0-9])(?=[{HAN}])")


def script(text: str) -> str | None:
    """``ja`` (with kana), ``zh`` (Chinese characters, neither kana nor hangul), ``words``, or None without a letter."""
    if re.search(f"[{KANA}]", text):
        return "ja"
    if re.search(f"[{HAN}]", text) and not re.search(f"[{HANGUL}]", text):
        return "zh"
    return "words" if any(char.isalpha() for char in text) else None


class MixedNormalizer:
    """See :func:`speechllm.text.open_normalizer`."""

    def __init__(self, kana: bool = False):
        from wetext import Normalizer
        from whisper_normalizer.basic import BasicTextNormalizer, remove_symbols
        from whisper_normalizer.english import EnglishTextNormalizer

        self.name = "kana" if kana else "mixed"
        libraries = ["whisper-normalizer", "wetext", "zhconv"]
        self._g2p = _load_g2p() if kana else None
        libraries += ["pyopenjtalk-plus"] * kana
        self.version = f"1 ({', '.join(f'{library} {version(library)}' for library in libraries)})"
        self._english, self._basic = EnglishTextNormalizer(), BasicTextNormalizer()
        self._remove_symbols = remove_symbols
        # Milliseconds each: the references come again at every validation.
        self._spell_out = functools.lru_cache(2**16)(Normalizer(lang="zh", operator="tn").normalize)

    def rows(self, texts: Mapping[str, str], like: Mapping[str, str] | None = None) -> dict[str, str]:
        """The texts by utterance, each written as its reference in ``like`` is.

        A row of numbers and symbols alone belongs to no language: it follows the Chinese or Japanese rows of the file,
        whichever are more, and without any of them the English ones.
        """
        scripts = {key: script((like or texts).get(key, text)) for key, text in texts.items()}
        asian = Counter(found for found in map(script, (like or texts).values()) if found in ("zh", "ja"))
        default = asian.most_common(1)[0][0] if asian else "words"
        return {key: self._row(text, scripts[key] or default) for key, text in texts.items()}

    def _row(self, text: str, language: str) -> str:
        if language == "ja" or (language == "zh" and self._g2p):
            return self._japanese(text)
        return self._chinese(text) if language == "zh" else self._words(text.translate(QUOTES))

    def _japanese(self, text: str) -> str:
        return self._basic(self._g2p(text, kana=True) if self._g2p and text else text).strip()

    def _words(self, text: str) -> str:
        """Runs of words, in turn by the English and by the basic normaliser; a number goes with the word before it."""
        kinds, words = [], text.split()
        for word in words:
            letters = [char for char in word if char.isalpha()]
            kinds.append("".join(letters).isascii() if letters else kinds[-1] if kinds else True)
        runs = groupby(zip(kinds, words, strict=True), key=lambda pair: pair[0])
        parts = ((self._english if ascii_run else self._basic)(" ".join(w for _, w in run)) for ascii_run, run in runs)
        # The English normaliser leaves the last point of `well...` standing, which compute-wer would take for a word.
        return " ".join(word for word in " ".join(parts).lower().split() if any(char.isalnum() for char in word))

    def _chinese(self, text: str) -> str:
        """Numbers and symbols as they are spoken, simplified; the English in it by the English normaliser."""
        import zhconv

        text = VARIANTS.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text).translate(SIGNS)
        text = THOUSANDS.sub(lambda match: match[0].replace(",", ""), TAG.sub(" ", text))
        # zh-hans changes the characters alone; zh-cn would change words too, which were spoken as they stand.
        text = BESIDE_HAN.sub("", zhconv.convert(text, "zh-hans"))
        text = ENGLISH.sub(lambda match: self._english(match[0]).strip(), NAME_NUMBER.sub(" ", text)).lower()
        parts = ORDINAL.split(text)
        parts[::2] = [self._spell_out(part) if part.strip() else part for part in parts[::2]]
        text = " ".join(self._remove_symbols(" ".join(parts)).translate(SPOKEN).split()).lower()
        return EDGE_OF_HAN.sub(" ", BETWEEN_HAN.sub("", text))


def _load_g2p():
    try:
        import pyopenjtalk
    except ImportError as error:
        raise UserError(
            "Japanese as kana needs a library that is not installed: pip install pyopenjtalk-plus"
        ) from error
    return pyopenjtalk.g2p
