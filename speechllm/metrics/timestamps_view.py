"""Aligned words for the eye: in a terminal, and in a report with pictures.

W words of an utterance; N samples of audio.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from speechllm import audio
from speechllm.metrics.error_view import width
from speechllm.metrics.timestamps import NAMED, Aligned

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES = 10  # utterances that are drawn, the worst of them
SHOWN = 3000  # words in the tables of the HTML report, those of the worst utterances
STRETCH = 5.0  # seconds of audio in a picture; of a longer utterance those around its worst boundary
RATE = 16000  # samples per second
WINDOW, HOP = 400, 80  # samples of a spectrum: 25 ms every 5 ms
FLOOR = 60  # dB below the loudest, white in a spectrogram
SILENCE = -140  # dB, the least that is told apart
STEP = 4  # dB between two greys of it: few of them make a small file
SIZE = (11, 3.7)  # inches of a picture
LEFT, RIGHT = 0.065, 0.995  # of a picture, where the axes begin and end
LARGEST, SMALLEST = 10, 6  # points of a word's letters
GOLD, FOUND = "#0072b2", "#d55e00"  # blue and vermilion, which the colour-blind tell apart
LATE = ((100, "#c00000"), (50, "#222222"), (0, "#888888"))  # from so many ms on, the colour of an error


def worst(found: Sequence[Aligned]) -> list[Aligned]:
    """The worst utterance, by its mean error, first."""
    return sorted(found, key=lambda utterance: (-utterance.sizes.mean(), utterance.sample.key))


def as_text(utterance: Aligned) -> str:
    """One line: the mean error, and the boundary that is furthest off."""
    place = int(utterance.sizes.argmax())
    word, side = utterance.row["words"][place // 2], ("start", "end")[place % 2]
    gold, found = (np.ravel(times)[place] for times in (utterance.sample.spans, utterance.row["timestamps"]))
    return (
        f"{utterance.sample.key}: {utterance.sizes.mean():.1f} ms over {len(utterance.errors)} word(s); worst: the "
        f"{side} of word {place // 2 + 1}, {word}, at {found:.3f} s, gold {gold:.3f} s"
    )


def as_html(found: Sequence[Aligned], unscored: Mapping[str, str]) -> str:
    """The worst utterances, each with its words in a table, the first of them with pictures.

    Args: as :func:`speechllm.metrics.timestamps.match` gives them.
    """
    order, parts = worst(found), []
    shown = order[: 1 + int(np.searchsorted(np.cumsum([len(utterance.errors) for utterance in order]), SHOWN))]
    for number, utterance in enumerate(shown):
        title = _title(utterance)
        if number < PICTURES:
            parts.append(f"<h3>{title}</h3>{_image(utterance)}")
            title = "words"
        parts.append(f"<details><summary>{title}</summary>{_table(utterance)}</details>")
    more = f"; the {len(shown)} worst are shown" if len(shown) < len(order) else ""
    return f"""{_unscored(unscored)}<h2>Utterances</h2>
<p>{len(found)} utterances, the worst first{more}. Above the spectrogram
<b style="color:{GOLD}">gold</b>, below it <b style="color:{FOUND}">predicted</b> words; the numbers are ms that a
predicted start (left) and end (right) comes too late (+) or too early (−).</p>
{"".join(parts)}"""


def _unscored(unscored: Mapping[str, str]) -> str:
    if not unscored:
        return ""
    rows = "".join(f"<tr><td>{escape(key)}<td>{escape(why)}</tr>\n" for key, why in list(unscored.items())[:NAMED])
    more = f" The first {NAMED}:" if len(unscored) > NAMED else ""
    return f"""<h2>Not scored</h2>
<p class="note">{len(unscored)} utterance(s) have no times and are in none of the numbers.{more}</p>
<table>{rows}</table>
"""


def _title(utterance: Aligned) -> str:
    return f"{escape(utterance.sample.key)}: {utterance.sizes.mean():.1f} ms, {len(utterance.errors)} word(s)"


def _table(utterance: Aligned) -> str:
    row, lines = utterance.row, []
    for word, gold, times, late, sure in zip(
        row["words"], utterance.sample.spans, row["timestamps"], utterance.errors, row["confidences"], strict=True
    ):
        both = "".join(f"<td>{start:.3f} to {end:.3f}" for start, end in (gold, times))
        off = "".join(f'<td style="color:{_colour(error)}">{_signed(error)}' for error in late)
        lines.append(f"<tr><td>{escape(word)}{both}{off}<td>{sure:.2f}</tr>\n")
    head = "<tr><th>word<th>gold, s<th>predicted, s<th>start, ms<th>end, ms<th>confidence</tr>\n"
    return f"<table>{head}{''.join(lines)}</table>"


def _signed(error: float) -> str:
    return f"{round(error):+d}".replace("-", "−")


def _colour(error: float) -> str:
    return next(colour for limit, colour in LATE if abs(error) >= limit)


def _image(utterance: Aligned) -> str:
    """The picture as an HTML element, or why there is none."""
    try:
        figure = draw(utterance, audio.read(utterance.sample.clip, RATE))
    except audio.AudioError as error:
        return f'<p class="note">no picture: {escape(str(error))}</p>'
    source = base64.b64encode(as_svg(figure)).decode()
    return f'<img style="max-width:100%" alt="{_title(utterance)}" src="data:image/svg+xml;base64,{source}">'


def stretch(utterance: Aligned, seconds: float) -> tuple[float, float]:
    """From where to where the audio is drawn, in seconds."""
    middle = np.ravel(utterance.sample.spans)[int(utterance.sizes.argmax())]
    first = max(0.0, min(middle - STRETCH / 2, seconds - STRETCH))
    return first, min(seconds, first + STRETCH)


def draw(utterance: Aligned, wave: np.ndarray) -> Figure:
    """Waveform, gold words, spectrogram with both sides' boundaries, and predicted words with their errors.

    Args:
        wave: (N,) at RATE.
    """
    from matplotlib.figure import Figure

    first, last = stretch(utterance, len(wave) / RATE)
    figure = Figure(SIZE)
    shape, above, spectrum, below = figure.subplots(4, sharex=True, height_ratios=(2, 1, 7, 3))
    figure.subplots_adjust(LEFT, 0.1, RIGHT, 0.99, hspace=0)
    shape.set_xlim(first, last)
    below.set_xlabel("seconds", labelpad=1)
    for axes, name in ((shape, ""), (above, "gold"), (below, "predicted")):
        axes.set_yticks([])
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    _draw_audio(shape, spectrum, wave, first, last)
    words = utterance.row["words"]
    for axes, spans, colour, style, height in (
        (above, utterance.sample.spans, GOLD, "-", 0.5),
        (below, utterance.row["timestamps"], FOUND, "--", 0.78),
    ):
        here = [(word, *span) for word, span in zip(words, spans, strict=True) if span[0] < last and span[1] > first]
        _draw_words(axes, here, colour, height)
        spectrum.vlines([place for _, *span in here for place in span], 0, RATE / 2000, colour, style, linewidth=1.3)
    for span, late in zip(utterance.row["timestamps"], utterance.errors, strict=True):
        for place, error, height, side in zip(span, late, (0.4, 0.13), ("left", "right"), strict=True):
            if first <= place <= last:
                look = {"ha": side, "va": "center", "fontsize": 7, "color": _colour(error), "clip_on": True}
                below.text(place, height, f" {_signed(error)} ", **look)
    return figure


def as_svg(figure: Figure) -> bytes:
    """With words as text, so that they are set in the reader's own fonts, which know more scripts than ours."""
    from matplotlib import rc_context

    made = io.BytesIO()
    with rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # from our font, which no word is set in
        figure.savefig(made, format="svg")
    return made.getvalue()


def _draw_audio(shape: Axes, spectrum: Axes, wave: np.ndarray, first: float, last: float) -> None:
    """The loudest and the lowest sample of every hop, and the power of every window in dB."""
    from scipy.signal import spectrogram

    part = wave[round(first * RATE) : round(last * RATE)]
    hops = part[: len(part) // HOP * HOP].reshape(-1, HOP)
    seconds = first + np.arange(len(hops)) * HOP / RATE
    shape.fill_between(seconds, hops.min(1), hops.max(1), color="#444444", linewidth=0.3)
    frequencies, times, power = spectrogram(part, RATE, nperseg=WINDOW, noverlap=WINDOW - HOP, mode="psd")
    level = STEP * np.round(10 / STEP * np.log10(np.maximum(power, 10 ** (SILENCE / 10))))
    edges = (first + times[0] - HOP / 2 / RATE, first + times[-1] + HOP / 2 / RATE)
    loudest = max(level.max(), SILENCE + FLOOR)
    extent, shades = (*edges, frequencies[0] / 1000, frequencies[-1] / 1000), {"vmin": loudest - FLOOR, "vmax": loudest}
    spectrum.imshow(level, "Greys", extent=extent, origin="lower", aspect="auto", interpolation="none", **shades)
    spectrum.set_xlim(first, last)
    spectrum.set_yticks([2, 4, 6], ["2", "4", "6 kHz"], fontsize=8)


def _draw_words(axes: Axes, words: Sequence[tuple[str, float, float]], colour: str, height: float) -> None:
    """A box per word, from its start to its end, and as much of the word in it as is legible."""
    first, last = axes.get_xlim()
    points = 72 * SIZE[0] * (RIGHT - LEFT) / (last - first)  # per second
    axes.set_ylim(0, 1)
    axes.vlines([place for _, *span in words for place in span], 0, 1, colour, linewidth=1.3)
    axes.broken_barh([(start, end - start) for _, start, end in words], (0, 1), facecolor=colour, alpha=0.12)
    for word, start, end in words:
        start, end = max(start, first), min(end, last)
        if start < end:
            room = points * (end - start) / 0.65  # letters of one point: of these a column takes 0.65
            size = min(LARGEST, max(SMALLEST, room / max(width(word), 1)))
            kept = word if width(word) * size <= 1.3 * room else word[: max(1, int(room / size) - 1)] + "…"
            look = {"ha": "center", "va": "center", "fontsize": size, "clip_on": True, "parse_math": False}
            axes.text((start + end) / 2, height, kept, **look)
