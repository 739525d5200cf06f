"""Supervised fine-tuning: cross-entropy on the assistant's tokens and its end mark, nothing else."""

from __future__ import annotations

from speechllm.errors import UserError
from speechllm.models.base import Generates
from speechllm.segments import join_texts
from speechllm.tasks.base import Task

IGNORED = -100  # a label that bears no loss


class Sft(Task):
    name = "sft"
    needs = Generates
    higher_is_better = False
    in_pieces = True

    def example(self, family, sample, wave, augment):
        if sample.text is None:
            raise UserError("no assistant message, so nothing to learn; add it or remove the row")
        return family.encode(wave, sample.prompt, sample.text, augment)

    def query(self, family, sample, wave):
        return family.encode(wave, sample.prompt, None, None)

    def silence(self, batch):
        batch["labels"].fill_(IGNORED)

    def counts(self, batch):
        return {"tokens": batch["labels"][:, 1:].ne(IGNORED).sum()}

    def loss(self, family, model, batch, totals):
        import torch.nn.functional as F

        target = batch["labels"][:, 1:]
        keep = target.ne(IGNORED)
        hidden = family.hidden(model, batch)[:, :-1][keep]  # (labels, D): the head runs at label positions only
        logits = family.head(model)(hidden).float()
        return F.cross_entropy(logits, target[keep], reduction="sum") / totals["tokens"]

    def predict(self, family, model, batch, options):
        return family.generate(model, batch, options.max_new_tokens)

    def join(self, rows):
        return {"text": join_texts(row["text"] for row in rows), "truncated": any(row["truncated"] for row in rows)}

    def score(self, references, rows, config):
        from speechllm.metrics.error_rate import score_texts

        return score_texts(references, {row["key"]: row["text"] for row in rows}, config.normalizer)
