"""Supervised fine-tuning: cross-entropy on the assistant's tokens and its end mark, nothing else.

Where the model has a CTC head (Graves et al., 2006), its loss on the same phonemes stands beside it.
"""

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

    def reference(self, sample):
        if sample.text is None:
            raise UserError("no assistant message; add it or remove the row")
        return sample.text

    def example(self, family, sample, wave, augment):
        return family.encode(wave, sample.prompt, self.reference(sample), augment)

    def query(self, family, sample, wave):
        return family.encode(wave, sample.prompt, None, None)

    def silence(self, batch):
        batch["labels"].fill_(IGNORED)
        if "ctc_labels" in batch:
            batch["ctc_labels"].fill_(IGNORED)

    def counts(self, batch):
        found = {"tokens": batch["labels"][:, 1:].ne(IGNORED).sum()}
        if "ctc_labels" in batch:
            found["ctc"] = batch["ctc_labels"].ne(IGNORED).sum()
        return found

    def loss(self, family, model, batch, totals):
        import torch.nn.functional as F

        target = batch["labels"][:, 1:]
        keep = target.ne(IGNORED)
        found = family.hidden(model, batch)
        logits = family.head(model)(found.text[:, :-1][keep]).float()  # at label positions only
        loss = F.cross_entropy(logits, target[keep], reduction="sum") / totals["tokens"]
        if "ctc_labels" in batch:
            ctc = ctc_loss(family.ctc_head(model)(found.audio).float(), found.lengths, batch["ctc_labels"])
            loss = loss + self.config.ctc_head_weight * ctc / totals["ctc"].clamp(min=1)
        return loss

    def predict(self, family, model, batch, options):
        return family.generate(model, batch, options)

    def join(self, rows):
        made = {"text": join_texts(row["text"] for row in rows), "truncated": any(row["truncated"] for row in rows)}
        if rows and all("confidences" in row for row in rows):
            made["confidences"] = [value for row in rows for value in row["confidences"]]
        if rows and all("ctc_text" in row for row in rows):
            made["ctc_text"] = join_texts(row["ctc_text"] for row in rows)
        return made

    def score(self, references, rows, config):
        from speechllm.metrics.error_rate import score_texts

        return score_texts(references, {row["key"]: row["text"] for row in rows}, config.normalizer)


def ctc_loss(logits, lengths, labels):
    """Sum of the negative log likelihoods of the rows that have labels.

    Args:
        logits: (B, T, K), class 0 the blank.
        lengths: (B,) frames of each row.
        labels: (B, N) classes, IGNORED after a row's last one.
    """
    import torch.nn.functional as F

    counts = labels.ne(IGNORED).sum(1)
    scores = logits.log_softmax(-1).transpose(0, 1)  # (T, B, K)
    losses = F.ctc_loss(scores, labels.clamp(min=0), lengths, counts, reduction="none")
    return losses.where(counts > 0, 0.0).sum()
