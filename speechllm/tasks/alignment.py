"""Forced alignment: when each word of a known text is spoken.

Cross-entropy at the slots alone, not shifted: the class is read at the slot itself (Qwen3-ASR technical report).
S slots of a batch, two per word; K classes of ``family.step`` seconds each.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from speechllm import boundaries
from speechllm.errors import UserError
from speechllm.models.base import Aligns
from speechllm.tasks.base import Task

NONE = -1.0  # the place of a slot that bears no loss
AROUND = 2  # classes on both sides of the best one that the expectation is over


class Alignment(Task):
    name = "alignment"
    needs = Aligns
    higher_is_better = False

    def reference(self, sample):
        if sample.spans is None:
            raise UserError("no timestamps in the row; add gold times or those of tools/align.py, or remove it")
        return sample

    def example(self, family, sample, wave, augment):
        words, spans = self._words(family, sample), self.reference(sample).spans
        if len(words) != len(spans):
            raise UserError(
                f"{len(words)} words, {len(spans)} pairs of timestamps; the words are {words}, the timestamps "
                f"{[tuple(span) for span in spans]}; give each word its pair"
            )
        marked = augment.rng("slots").random(len(words)) < self.config.alignment_conf.slot_prob
        marked[augment.rng("slot").integers(len(words))] = True  # or there might be nothing to learn
        times = augment.times(np.array(spans))
        return family.encode(wave, words, times, marked.tolist(), augment)

    def query(self, family, sample, wave):
        return family.encode(wave, self._words(family, sample))

    def _words(self, family, sample):
        words = family.split(sample.text or "", sample.language)
        if not words:
            raise UserError(f"the text {sample.text!r} has no word, so there is nothing to align; remove the row")
        return words

    def silence(self, batch):
        batch["places"].fill_(NONE)

    def counts(self, batch):
        return {"slots": batch["places"].ge(0).sum()}

    def loss(self, family, model, batch, totals):
        import torch.nn.functional as F

        keep = batch["places"].ge(0)
        logits = family.slot_logits(model, batch)[keep].float()
        target = spread(batch["places"][keep], logits.shape[-1], self.config.alignment_conf.label_spread)
        return F.cross_entropy(logits, target, reduction="sum") / totals["slots"]

    def predict(self, family, model, batch, options):
        posteriors = family.slot_logits(model, batch).float().softmax(-1)
        best = posteriors.argmax(-1)
        places = best.double() if options.boundaries == "argmax" else expected(posteriors, best)
        spans, told = [], []
        bounds = [0, *np.cumsum(family.slots(batch)).tolist()]
        for (start, stop), seconds in zip(pairwise(bounds), family.seconds(batch), strict=True):
            classes, exact = best[start:stop].cpu().numpy(), places[start:stop].cpu().numpy() * family.step
            fixed, kept = boundaries.repair(np.round(classes * family.step * 1000))
            least = 0.0 if options.zero_length else boundaries.SHORTEST
            spans.append(boundaries.apart(np.where(kept, exact, fixed / 1000), least, seconds))
            told.append(
                {"classes": classes.tolist(), "step": family.step, "inversions": boundaries.inversions(classes)}
            )
        sure = near(posteriors, np.concatenate(spans) / family.step).reshape(-1, 2).min(1)
        confidences = np.split(sure, [stop // 2 for stop in bounds[1:-1]])
        return [
            {
                "text": " ".join(words),
                "words": words,
                "timestamps": np.round(times, 4).reshape(-1, 2).tolist(),
                "confidences": np.round(confidence, 4).tolist(),
            }
            | rest
            for words, times, confidence, rest in zip(family.words(batch), spans, confidences, told, strict=True)
        ]

    def score(self, references, rows, config):
        from speechllm.metrics.timestamps import score_rows

        return score_rows(references, rows)


def spread(places, classes, width):
    """(S, K) what each class is to get: a normal distribution around the place; for width 0 the nearest class alone.

    Args:
        places: (S,) in classes.
        width: its standard deviation, in classes.
    """
    import torch
    import torch.nn.functional as F

    if width == 0:
        return F.one_hot(places.round().long().clamp(max=classes - 1), classes).float()
    away = torch.arange(classes, device=places.device) - places[:, None]
    return (-0.5 * (away / width).square()).softmax(-1)


def expected(posteriors, best):
    """(S,) the expectation over the classes around the best one, in classes."""
    import torch

    around = best[:, None] + torch.arange(-AROUND, AROUND + 1, device=best.device)
    inside = around.clamp(0, posteriors.shape[1] - 1)
    weights = posteriors.gather(1, inside) * inside.eq(around)
    return ((weights * around).sum(1) / weights.sum(1)).double()


def near(posteriors, places):
    """(S,) numpy: the posterior of the classes within one of each place.

    Args:
        places: (S,) numpy, in classes.
    """
    import torch

    middle = torch.from_numpy(places).round().long().to(posteriors.device)
    around = middle[:, None] + torch.arange(-1, 2, device=posteriors.device)
    inside = around.clamp(0, posteriors.shape[1] - 1)
    return (posteriors.gather(1, inside) * inside.eq(around)).sum(1).clamp(max=1).cpu().numpy()
