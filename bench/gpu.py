"""One GPU, random weights of the released model's size: training tokens/s, MFU, peak memory; decoding RTFx.

python bench/gpu.py ++peak_tflops=989        # H100 or H200 SXM, dense bfloat16
python bench/gpu.py ++device=cpu ++tiny=true # does it run? its numbers say nothing

Random weights, since speed does not depend on their values; rows of 10 s of noise and 40 tokens. docs/gpu.md has the
formulas and the table that this prints.
"""

import contextlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from speechllm import cli, provenance
from speechllm.config import AnswerOptions
from speechllm.errors import UserError


@dataclass
class Options:
    device: str = "cuda"
    tiny: bool = False
    """A model of a few thousand parameters and a few rows, to try the script."""
    layout: Literal["funasr", "hf"] = "funasr"
    """Of an audio the LLM hears the first T/8 of its T frames (funasr) or all (hf)."""
    rows: int = 32
    """Utterances of 10 s in a training step."""
    steps: int = 20
    """Training steps that are timed, after 5 that are not."""
    batches: list[int] | None = None
    """Utterances decoded at a time; empty: 1, 16 and 128."""
    peak_tflops: float = 0.0
    """The GPU's dense bfloat16 peak from its data sheet, for the MFU; 0: no MFU."""


def main(options: Options) -> None:
    import torch

    from bench.model import REAL, SLIM, VOCABULARY, random_model

    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("torch sees no GPU; run this where there is one, or try it with ++device=cpu ++tiny=true")
    sizes, vocabulary = (SLIM, 500) if options.tiny else (REAL, VOCABULARY)
    if options.tiny:
        options.rows, options.steps, options.batches = 2, 2, options.batches or [1, 2]
    print(f"| measured | {provenance.machine()}, torch {torch.__version__}, commit {provenance.commit()} |\n|---|---|")
    for frozen in (True, False):
        family, model = random_model(sizes, vocabulary, options.layout, options.device)
        print_rows(train(family, model, frozen, options))
        del family, model
    family, model = random_model(sizes, vocabulary, options.layout, options.device)
    for dtype in (torch.float32, torch.bfloat16):
        model = model.to(dtype)
        for count in options.batches or [1, 16, 128]:
            print_rows(decode(family, model, count, options))


def print_rows(rows: dict[str, str]) -> None:
    for name, value in rows.items():
        print(f"| {name} | {value} |", flush=True)


# ---- training


def train(family: Any, model: Any, frozen: bool, options: Options) -> dict[str, str]:
    """Steps as the trainer makes them: float32 weights, bfloat16 passes, clipped gradients, fused AdamW."""
    import torch

    from bench.model import rows
    from speechllm.tasks import open_task

    task = open_task("sft", family)
    batch = {name: tensor.to(options.device) for name, tensor in rows(family, options.rows).items()}
    model.train()
    if frozen:
        (encoder,) = family.parts(model)["audio_encoder"]
        encoder.requires_grad_(False).eval()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    totals = task.counts(batch)

    def step() -> None:
        with torch.autocast(options.device.split(":")[0], torch.bfloat16):
            loss = task.loss(family, model, batch, totals)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 5.0)
        optimizer.step()
        optimizer.zero_grad()

    seconds, memory = timed(step, 5, options.steps, options.device)
    done = flops(family, model, batch, frozen)
    name = f"training, {options.rows} rows, encoder {'frozen' if frozen else 'trained'}"
    told = {
        f"{name}: LLM tokens/s": f"{batch['input_ids'].numel() / seconds:,.0f}",
        f"{name}: audio seconds/s": f"{options.rows * 10 / seconds:,.0f}",
        f"{name}: peak memory": memory,
    }
    if options.peak_tflops:
        told[f"{name}: MFU"] = f"{done / seconds / options.peak_tflops / 1e12:.1%} ({done / 1e12:.1f} TFLOP per step)"
    return told


def flops(family: Any, model: Any, batch: dict, frozen: bool) -> float:
    """Of a training step: docs/gpu.md has the formula. Recomputation, softmax and norms are not counted."""
    from torch import nn

    config = family.config
    rows, frames = batch["input_features"].shape[:2]
    positions = batch["input_ids"].shape[1]
    labels = (batch["labels"] != -100).sum().item()

    def weights(module: nn.Module) -> int:
        return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))

    parts = family.parts(model)
    audio, adaptor, text = config.audio_config, config.adaptor_config, config.text_config
    (encoder,), (projector,), (llm, head) = parts["audio_encoder"], parts["audio_adaptor"], parts["llm"]
    encoded = 2 * weights(encoder) * rows * frames + 4 * audio.num_hidden_layers * audio.hidden_size * rows * frames**2
    adapted = 2 * weights(projector) * rows * frames
    adapted += 4 * adaptor.num_hidden_layers * adaptor.hidden_size * rows * frames**2
    read = 2 * weights(llm) * rows * positions
    read += 4 * text.num_hidden_layers * text.num_attention_heads * text.head_dim * rows * positions**2
    said = 2 * head.weight.numel() * labels
    return (1 if frozen else 3) * encoded + 3 * (adapted + read + said)


# ---- decoding


def decode(family: Any, model: Any, count: int, options: Options) -> dict[str, str]:
    """Features in memory to text, 40 tokens per row: their values are random, so none is let end before."""
    import torch

    from bench.model import SECONDS, TOKENS, rows

    dtype = next(model.parameters()).dtype
    batch = rows(family, count, labelled=False)
    batch["input_features"] = batch["input_features"].to(dtype)
    batch = {name: tensor.to(options.device) for name, tensor in batch.items()}
    model.eval()
    with torch.no_grad():
        model.lm_head.weight[family.end].zero_()  # a logit of 0 is never the largest of many random ones

    def step() -> None:
        with torch.inference_mode():
            family.generate(model, batch, AnswerOptions(TOKENS))

    seconds, memory = timed(step, 1, 3, options.device)
    name = f"decoding, {str(dtype).removeprefix('torch.')}, batch {count}"
    return {f"{name}: RTFx": f"{count * SECONDS / seconds:,.0f}", f"{name}: peak memory": memory}


def timed(step: Any, before: int, steps: int, device: str) -> tuple[float, str]:
    """Seconds per step after ``before`` untimed ones, and the most memory that torch held."""
    import torch

    cuda = device.startswith("cuda")
    settle = torch.cuda.synchronize if cuda else contextlib.nullcontext
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(before):
        step()
    settle()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    settle()
    seconds = (time.perf_counter() - started) / steps
    return seconds, f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if cuda else "(not measured on a CPU)"


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
