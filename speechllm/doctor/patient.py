"""A run's model as it goes into training, with a few of its rows, and what can be measured on them.

B rows of a batch, V words of the LLM's vocabulary.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import set_seed

from speechllm import audio, checkpoint, freeze_policy, hub, parallel
from speechllm.batching import Draw, Fault, Rows
from speechllm.config import RunConfig
from speechllm.examples import Examples
from speechllm.formats.jsonl import JsonlFile
from speechllm.models import open_family
from speechllm.models.base import Generates
from speechllm.sample import Sample
from speechllm.tasks import open_task
from speechllm.trainer import Objective

LOUDNESS = 0.1  # root mean square of the noise that takes the place of an utterance


@dataclass
class Row:
    """One row.

    Args:
        seconds: of audio, as it is after augmentation.
        heard: as Examples.example makes it.
        noise: the same with noise in place of the speech.
        places: positions in its tokens that take audio, once they are counted.
        learnt: tokens that bear loss, once they are found.
    """

    sample: Sample
    seconds: float
    heard: dict
    noise: dict
    places: int = 0
    learnt: list[int] = field(default_factory=list)

    @property
    def key(self) -> str:
        return self.sample.key


@dataclass
class Pass:
    """What one pass forward and backward left.

    Args:
        broken: what was not finite, in the order in which it came: modules, the loss, gradients.
        over: modules that took in or gave out numbers beyond the largest of float16, in the order in which they came.
        moved: of each parameter that has a gradient, whether any of it is not zero.
    """

    loss: float
    broken: list[str]
    over: list[str]
    moved: dict[str, bool]


class Patient:
    """Opens a run as training does (:func:`speechllm.run.train`), up to the first step.

    Attributes:
        rows: the first, the shortest, the longest and one drawn by the run's seed, each once, where they can be used.
        faults: those of them that cannot.
        generates: whether the task trains text from audio.
        broken: tensors of the checkpoint that hold NaN or infinity.
        token_rows: names of the parameters that hold rows of added tokens, which are trained beside a frozen LLM.
        halves: parts that are stored in float16, that is, all of whose weights are numbers of that type.
    """

    def __init__(self, config: RunConfig):
        set_seed(config.train_conf.seed)
        self.data = JsonlFile(config.train_data_set_list)
        self.family = open_family(config.family, hub.resolve(config.model, config.hub))
        self.task = open_task(config.task, self.family, config)
        self.generates = issubclass(self.task.needs, Generates)
        self.model = self.family.load()
        parts = self.family.parts(self.model)
        self.broken = [name for name, t in _floats(self.model) if not t.isfinite().all()]
        self.halves = [name for name, modules in parts.items() if all(_is_half(module) for module in modules)]
        self.config = freeze_policy.decide(config, sum(self.data.speech_lengths) / 360_000, parts)
        frozen = checkpoint.set_trainable(self.family, self.model, self.config)
        self.token_rows = _token_rows(self.model)
        self.device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        self.objective = Objective(self.family, self.task, self.model, frozen).to(self.device).eval()
        self.examples = Examples(self.config, self.family, self.task)
        made = Rows(self.data, self._row)
        found = [made[Draw(index, epoch=0)] for index in self._chosen()]
        self.faults = [row for row in found if isinstance(row, Fault)]
        self.rows = [row for row in found if isinstance(row, Row)]

    def _chosen(self) -> list[int]:
        lengths = np.asarray(self.data.speech_lengths)
        drawn = np.random.default_rng(self.config.train_conf.seed).integers(len(lengths))
        return list(dict.fromkeys([0, int(lengths.argmin()), int(lengths.argmax()), int(drawn)]))

    def _row(self, sample: Sample, draw: Draw) -> Row:
        heard = self.examples.example(sample, draw)
        augment = self.examples.augmenter.draw(draw.epoch, sample.key)
        wave = augment.wave(audio.read(sample.clip, self.family.rate, self.examples.allow_pipes))
        noise = np.random.default_rng(0).standard_normal(len(wave), np.float32) * np.float32(LOUDNESS)
        made = self.task.example(self.family, sample, noise, augment)
        return Row(sample, len(wave) / self.family.rate, heard, heard | {"row": made})

    def batch(self, rows: list[dict]) -> tuple[dict, dict]:
        """The tensors of a batch and the denominators of its loss, on the device."""
        made = self.examples.collate(rows)
        return tuple({name: t.to(self.device) for name, t in made[key].items()} for key in ("inputs", "counts"))

    def loss(self, rows: list[dict], totals: dict | None = None) -> torch.Tensor:
        """The task's loss on a batch.

        Args:
            totals: the denominators; those of the batch if left out.
        """
        inputs, counts = self.batch(rows)
        return self.objective(inputs, totals or {name: count.clamp(min=1) for name, count in counts.items()})

    def bearing(self, row: Row) -> list[int]:
        """The tokens that bear loss, as the loss itself tells.

        Where all logits are equal, the slope of a cross-entropy is below zero at the tokens that it wants, and nowhere
        else; so the logits are made equal, and the weights have no say in it.
        """
        flat: list[torch.Tensor] = []

        def flatten(module: nn.Module, given: tuple, logits: torch.Tensor) -> torch.Tensor:
            flat.append(torch.zeros_like(logits, requires_grad=True))
            return flat[-1]

        hook = self.family.head(self.model).register_forward_hook(flatten)
        try:
            loss = self.loss([row.heard])
        finally:
            hook.remove()
        if not flat:
            return []
        slopes = torch.autograd.grad(loss, flat)
        slopes = torch.cat([slope.flatten(0, -2) for slope in slopes])  # (positions, V)
        return slopes[slopes.lt(0).any(-1)].argmin(-1).tolist()

    def learn(self) -> Pass:
        """Forward and backward over all rows, in training mode and in the run's precision; no gradient is kept."""
        self.objective.train()
        with self._watched() as seen:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=parallel.use_bfloat16(self.config)):
                loss = self.loss([row.heard for row in self.rows])
            seen.loss = loss.item()
            if not math.isfinite(seen.loss):
                seen.broken.append("the loss")
            loss.backward()
        self.objective.eval()
        return seen

    @contextlib.contextmanager
    def _watched(self) -> Iterator[Pass]:
        """Notes what passes through the model, forward and backward.

        A gradient is let go as soon as it is seen: a model that is trained whole takes no more memory here than its
        weights and one batch.
        """
        seen = Pass(math.nan, [], [], {})

        def came(name: str, module: nn.Module, given: tuple, made: Any) -> None:
            inner = any(True for _ in module.children())  # which may be given masks of minus infinity
            for tensors in (() if inner else given, made):
                peak = _peak(tensors)
                if not math.isfinite(peak):
                    seen.broken.append(name)
                elif peak > torch.finfo(torch.float16).max:
                    seen.over.append(name)

        def took_part(name: str, parameter: nn.Parameter) -> None:
            seen.moved[name] = bool(parameter.grad.any())
            if not parameter.grad.isfinite().all():
                seen.broken.append(f"the gradient of {name}")
            parameter.grad = None

        hooks = [module.register_forward_hook(partial(came, name)) for name, module in self.model.named_modules()]
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                hooks.append(parameter.register_post_accumulate_grad_hook(partial(took_part, name)))
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()


def _floats(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(name, tensor) for name, tensor in module.state_dict().items() if tensor.is_floating_point()]


def _token_rows(model: nn.Module) -> set[str]:
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    layers = [layer for layer in model.modules() if isinstance(layer, TrainableTokensLayer)]
    rows = {id(parameter) for layer in layers for parameter in layer.trainable_tokens_delta.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in rows}


def _is_half(module: nn.Module) -> bool:
    return all(tensor.half().to(tensor.dtype).equal(tensor) for _, tensor in _floats(module))


def _peak(made: Any) -> float:
    """The largest magnitude in what a module takes or gives, a tensor or tensors in tuples and dicts; NaN wins."""
    if isinstance(made, torch.Tensor):
        return made.detach().abs().max().item() if made.is_floating_point() and made.numel() else 0.0
    inside = made.values() if isinstance(made, dict) else made if isinstance(made, tuple | list) else ()
    return float(np.max([_peak(one) for one in inside], initial=0.0))
