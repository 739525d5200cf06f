"""What the families share whose LLM hears audio as vectors within Qwen's chat.

B rows, T vectors of audio, L positions of text and audio, D width of the LLM.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from speechllm.batching import Pad
from speechllm.errors import UserError
from speechllm.models import ctc
from speechllm.models.base import Family, Generates, Hidden
from speechllm.phonemes import Phonemes

if TYPE_CHECKING:
    import torch
    from torch import nn

    from speechllm.config import DecodeOptions
    from speechllm.sample import Prompt

IGNORED = -100  # a label that bears no loss


class AudioChat(Family, Generates):
    """A family sets ``tokenizer`` and ``audio_token_id`` by :func:`open_chat`, and says how audio becomes vectors.

    Attributes:
        phonemes: those that the tokenizer was extended with.
        end: id of the mark that ends every turn.
        has_ctc: whether the model has a CTC head on its adaptor.
    """

    has_ctc = False

    def open_chat(self, tokenizer: Any, audio_token_id: int) -> None:
        self.tokenizer, self.audio_token_id = tokenizer, audio_token_id
        self.phonemes = Phonemes(tokenizer)
        self.added_tokens = [*self.phonemes.ids.values(), *self.phonemes.marks]
        self.end = tokenizer.convert_tokens_to_ids("<|im_end|>")

    # ---- what differs

    @abstractmethod
    def listen(self, model: nn.Module, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """The audio as the LLM takes it: (B, T, D), and how many of the T each row has, (B,)."""

    # ---- what does not

    def fields(self, generating):
        side = "left" if generating else "right"
        text = {"input_ids": Pad(self.tokenizer.pad_token_id, side), "attention_mask": Pad(0, side)}
        return text | {"labels": Pad(IGNORED, side)} | ({"ctc_labels": Pad(IGNORED)} if self.has_ctc else {})

    def chat(self, prompt: Prompt, frames: int, answer: str | None, system: bool = True, think: bool = False) -> dict:
        """The tensors of one row's text; ``frames`` positions of it are the audio's.

        Args:
            system: whether there is a system turn.
            think: leave it to the LLM whether it thinks, in place of an empty thought.
        """
        import torch

        opening = f"<|im_start|>system\n{prompt.system}<|im_end|>\n" if system else ""
        thought = "" if think else "<think>\n\n</think>\n\n"
        before = self._ids(f"{opening}<|im_start|>user\n{prompt.before}")
        after = self._ids(f"{prompt.after}<|im_end|>\n<|im_start|>assistant\n{thought}")
        ids, row = [*before, *[self.audio_token_id] * frames, *after], {}
        if answer is not None:
            target = [*self.phonemes.encode(answer), self.end]
            row["labels"] = torch.tensor([IGNORED] * len(ids) + target)
            ids += target
            if self.has_ctc:
                symbols = ctc.labels(self.phonemes.symbols(answer), list(self.phonemes.ids), frames)
                row["ctc_labels"] = torch.tensor(symbols, dtype=torch.long)
        return row | {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids), dtype=torch.long)}

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def embed(self, model: nn.Module, batch: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Embeddings (B, L, D) of text and audio, and what :func:`listen` gave.

        A row takes as many of its vectors as it has audio positions: the first ones.
        """
        import torch

        vectors, lengths = self.listen(model, batch)
        text = self.llm(model).get_input_embeddings()(batch["input_ids"])
        places = batch["input_ids"] == self.audio_token_id
        first = torch.arange(vectors.shape[1], device=vectors.device) < places.sum(1, keepdim=True)
        return text.masked_scatter(places[..., None], vectors[first].to(text.dtype)), vectors, lengths

    def audio_counts(self, model, batch):
        return batch["input_ids"].eq(self.audio_token_id).sum(1), self.listen(model, batch)[1]

    def hidden(self, model, batch):
        embedded, vectors, lengths = self.embed(model, batch)
        inputs = {"inputs_embeds": embedded, "attention_mask": batch["attention_mask"]}
        return Hidden(self.llm(model).model(**inputs, use_cache=False).last_hidden_state, vectors, lengths)

    def head(self, model):
        return self.llm(model).lm_head

    def generate(self, model, batch, options):
        embedded, vectors, lengths = self.embed(model, batch)
        made, held = self._generate(model, embedded, batch["attention_mask"], options)
        ended = (made.sequences == self.end).any(dim=1).tolist()
        rows = [
            {"text": self.phonemes.decode(ids), "truncated": not end}
            for ids, end in zip(made.sequences.tolist(), ended, strict=True)
        ]
        if held:
            for row, values in zip(rows, held.posteriors(made), strict=True):
                row["confidences"] = values
        if options.nbest > 1:
            for row, score in zip(rows, made.sequences_scores.tolist(), strict=True):
                row["score"] = round(score, 4)
            groups = [rows[start : start + options.nbest] for start in range(0, len(rows), options.nbest)]
            rows = [group[0] | {"nbest": group} for group in groups]
        if self.has_ctc:
            found = ctc.texts(self.ctc_head(model)(vectors), lengths, list(self.phonemes.ids))
            rows = [row | {"ctc_text": text} for row, text in zip(rows, found, strict=True)]
        return rows

    def _generate(self, model: nn.Module, embedded: Any, mask: Any, options: DecodeOptions) -> tuple[Any, Held | None]:
        """Generation from embeddings (B, L, D), greedy or by as many beams as answers are wanted."""
        held = Held(self.added_tokens, self.end) if self._held(options) else None
        made = self.llm(model).generate(
            inputs_embeds=embedded,
            attention_mask=mask,
            max_new_tokens=options.max_new_tokens,
            do_sample=False,
            num_beams=options.nbest,
            num_return_sequences=options.nbest,
            eos_token_id=self.end,
            pad_token_id=self.tokenizer.pad_token_id,
            logits_processor=[held] if held else [],
            return_dict_in_generate=True,
            output_scores=options.nbest > 1,  # or transformers keeps no account of the beams
        )
        return made, held

    def _held(self, options: DecodeOptions) -> bool:
        if options.vocabulary == "phonemes" and not self.phonemes.ids:
            raise UserError(
                f"{self.folder}: ++vocabulary=phonemes, but its tokenizer has none; add them with "
                "tools/build_phoneme_vocab.py and tools/compose_model.py"
            )
        chosen = options.vocabulary == "auto" and not self.phonemes.marks
        return bool(self.phonemes.ids) and (chosen or options.vocabulary == "phonemes")


class Held:
    """Keeps generation to some tokens and the end mark, as a logits processor of transformers, and keeps posteriors.

    Args:
        ids: the tokens.
        end: the end mark.
    """

    def __init__(self, ids: list[int], end: int):
        self.end, self.ids, self.steps = end, sorted([*ids, end]), []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import torch

        allowed = torch.tensor(self.ids, device=scores.device)
        chosen = scores[:, allowed].float().log_softmax(-1)
        self.steps.append(chosen)
        return torch.full_like(scores, -torch.inf).index_copy_(1, allowed, chosen.to(scores.dtype))

    def posteriors(self, made: Any) -> list[list[float]]:
        """Of each answer, the posterior of every token before the end mark, given those before it."""
        beams = getattr(made, "beam_indices", None)
        found = []
        for row, ids in enumerate(made.sequences.tolist()):
            ids = ids[: ids.index(self.end)] if self.end in ids else ids
            rows = [row] * len(ids) if beams is None else beams[row].tolist()
            steps = zip(self.steps, rows, ids, strict=False)
            found.append([round(step[r, self.ids.index(i)].exp().item(), 4) for step, r, i in steps])
        return found
