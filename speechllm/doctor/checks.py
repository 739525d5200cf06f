"""The checks, each a function from a run to what it found there, with what to do about it. ALL has them in order."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Collection
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple

import torch

from speechllm import parallel
from speechllm.doctor.patient import Pass, Patient, Row
from speechllm.errors import UserError
from speechllm.phonemes import MARKS, stretches

OK, FAIL, NOTE = "ok", "FAIL", "note"
IGNORED = -100  # a label that bears no loss
# Between the losses of a batch and of its rows, relative and per token: float32 leaves 1e-7 on models of three layers,
# and an encoder that hears its padding makes 3e-4 of it where the weights are random, 2e-2 where the audio has a say.
TOLERANCE, LEAST = 1e-4, 1e-5
FAR = 1.5  # times the loss of guessing: then something else than training is missing
PHONEME_SCORES = ("phonemes", "timit39")  # the normalizers of runs that are scored by phonemes
BUILD = "make them by tools/build_phoneme_vocab.py from all data, and put them into the model by tools/compose_model.py"
SHOWN = 3  # faults that a line names
DECISIVE = ("weights", "audio positions", "denominators")  # where these fail, what follows cannot be judged


class Finding(NamedTuple):
    verdict: str
    """OK, FAIL, or NOTE for what is told without being judged."""
    check: str
    told: str


def judged(check: str, faults: Collection[str], good: str, mend: str) -> Finding:
    """FAIL with the faults and what to do about them, or OK."""
    return Finding(FAIL, check, f"{some(faults)}; {mend}") if faults else Finding(OK, check, good)


def some(names: Collection[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(list(names)[:SHOWN]) + more


# ---- before any loss


def check_rows(patient: Patient) -> list[Finding]:
    faults = [f"utterance {fault.sample.key} ({fault.sample.where}): {fault.reason}" for fault in patient.faults]
    good = f"{len(patient.rows)} of {len(patient.data)} read: the first, the shortest, the longest, one at random"
    return [judged("rows", faults, good, "training would stop there")]


def check_weights(patient: Patient) -> list[Finding]:
    stored = f"; stored in float16: {', '.join(patient.halves)}" if patient.halves else ""
    mend = f"NaN or infinite{stored}. Start from a checkpoint in bfloat16 or float32, or download this one again"
    return [judged("weights", patient.broken, f"all finite{stored}", mend)]


def check_inventory(patient: Patient) -> list[Finding]:
    """Whether every symbol of every answer is in the vocabulary, where the run is about phonemes."""
    if not patient.generates:
        return []
    known, scored = patient.family.phonemes.ids, patient.config.normalizer
    if not known and scored not in PHONEME_SCORES:
        return []
    if not known:
        return [Finding(FAIL, "phonemes", f"normalizer={scored}, and the tokenizer has no phonemes; {BUILD}")]
    lacking: dict[str, str] = {}
    for sample in patient.data:
        try:
            for symbol in symbols(patient.family, sample.text or ""):
                if symbol not in known:
                    lacking.setdefault(symbol, f"{symbol} (first in utterance {sample.key}, {sample.where})")
        except UserError as error:
            return [Finding(FAIL, "phonemes", f"utterance {sample.key} ({sample.where}): {error}")]
    good = f"those of all {len(patient.data)} answers are among the model's {len(known)}"
    return [judged("phonemes", lacking.values(), good, f"not among the model's {len(known)} phonemes; {BUILD}")]


def check_audio_positions(patient: Patient) -> list[Finding]:
    if not patient.generates:
        return []
    faults = []
    for row in patient.rows:
        with torch.no_grad():
            counts = patient.family.audio_counts(patient.model, patient.batch([row.heard])[0])
        row.places, vectors = (int(count) for count in counts)
        if row.places != vectors or not vectors:
            faults.append(f"{row.key}: {row.places} positions take audio, encoder and adaptor give {vectors} vectors")
    good = "each takes a vector of the adaptor, and none is left over"
    return [judged("audio positions", faults, good, "correct how the family counts them when it encodes a row")]


# ---- what bears loss


def check_answers(patient: Patient) -> list[Finding]:
    """That exactly the answer and the end mark bear loss, and that its phonemes are whole."""
    if not patient.generates:
        return []
    family, known = patient.family, patient.family.phonemes.ids
    inverse, empty, wrong, split = {i: symbol for symbol, i in known.items()}, [], [], []
    for row in patient.rows:
        row.learnt, answer = patient.bearing(row), row.sample.text
        if not row.learnt:
            empty.append(row.key)
            continue
        if known and [inverse[i] for i in row.learnt if i in inverse] != symbols(family, answer):
            pieces = "|".join(family.tokenizer.decode([i]) for i in row.learnt)
            split.append(f"{row.key}: {short(answer)} became {short(pieces)}")
        learnt, wanted = shown(family, row.learnt), answer + family.tokenizer.decode([family.end])
        if plain(learnt, known) != plain(wanted, known):
            wrong.append(f"{row.key}: {short(learnt)} instead of {short(wanted)}")
        elif misplaced(row):
            wrong.append(f"{row.key}: labels are not at the positions of their tokens")
    findings = [
        judged("labels", empty, "every row bears loss", "no token of these bears loss; give the rows their answers"),
        judged("loss", wrong, "on the answer and the end mark alone", "set labels to -100 on all but the answer"),
    ]
    if known:
        findings.append(judged("whole phonemes", split, "each symbol is one token that bears loss", BUILD))
    return findings


def symbols(family: Any, answer: str) -> list[str]:
    """The phonemes of an answer; of a model that knows the marks, those between them."""
    marked = any(mark in answer for mark in MARKS)
    if family.phonemes.marks:
        return [symbol for stretch in stretches(answer) for symbol in stretch] if marked else []
    return answer.split()


def shown(family: Any, ids: list[int]) -> str:
    """Tokens as text, special ones too; phonemes as they stand in the data."""
    names = {i: symbol for symbol, i in family.phonemes.ids.items()}
    names |= {i: family.tokenizer.decode([i]) for i in family.phonemes.marks}
    parts = []
    for special, run in groupby(ids, key=names.__contains__):
        run = list(run)
        parts.append(" ".join(names[i] for i in run) if special else family.tokenizer.decode(run))
    return "".join(parts)


def plain(text: str, known: dict) -> str:
    """What is compared: with phonemes, whose tokens have no blanks, the blanks do not count."""
    return "".join(text.split()) if known else unicodedata.normalize("NFC", text)


def short(text: str, most: int = 80) -> str:
    """Quoted, on one line, with the middle left out of what is long."""
    return repr(text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}")


def misplaced(row: Row) -> bool:
    labels, ids = row.heard["row"]["labels"], row.heard["row"]["input_ids"]
    return bool((labels.ne(IGNORED) & labels.ne(ids)).any())


def check_losses(patient: Patient) -> list[Finding]:
    """Losses in float32, without dropout: of the batch, of its rows, and of its rows with noise to hear.

    Where rows have no loss of their own (in contrastive learning, say), the batch stands for them.
    """
    together = [row.heard for row in patient.rows]
    _, counts = patient.batch(together)
    if not sum(counts.values()):
        return [Finding(FAIL, "denominators", "the task finds nothing in these rows that bears loss; look at them")]
    units = [[row] for row in patient.rows] if patient.generates else [patient.rows]
    totals = {name: count.clamp(min=1) for name, count in counts.items()}
    # cuDNN would convolve in TF32, and may choose another way each time.
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        batch = patient.loss(together, totals).item()
        own = [patient.loss([row.heard for row in unit], totals).item() for unit in units]
        other = [patient.loss([row.noise for row in unit], totals).item() for unit in units]
    if not math.isfinite(sum(own) + batch):
        faulty = [row.key for unit, loss in zip(units, own, strict=True) if not math.isfinite(loss) for row in unit]
        return [Finding(FAIL, "finite loss", f"NaN or infinite in float32 with {some(faulty) or 'padding'}")]
    found = [heard(units, own, other)]
    return [padding(patient, own, batch), start(patient, len(counts), batch), *found] if patient.generates else found


def padding(patient: Patient, own: list[float], batch: float) -> Finding:
    same = math.isclose(sum(own), batch, rel_tol=TOLERANCE, abs_tol=LEAST)
    told = f"the loss of the batch, {batch:.4f}, is {'' if same else 'not '}that of its rows one by one, {sum(own):.4f}"
    if not same:
        return Finding(FAIL, "padding", f"{told}; a mask of the family is wrong, or what a field is padded with")
    if patient.family.fields(generating=True)["input_ids"].side != "left":
        return Finding(FAIL, "padding", "text is padded on the right to generate, where answers begin; pad on the left")
    return Finding(OK, "padding", told)


def start(patient: Patient, terms: int, batch: float) -> Finding:
    if terms > 1:
        return Finding(NOTE, "loss at the start", f"{batch:.2f}, the sum of {terms} terms")
    words = len(patient.family.tokenizer)
    far = batch > FAR * math.log(words)
    warning = ", far less: are these the weights, the tokenizer and the prompt of one model?" if far else ""
    told = f"{batch:.2f}; guessing among {words:,} tokens has {math.log(words):.2f}{warning}"
    return Finding(NOTE, "loss at the start", told)


def heard(units: list[list[Row]], own: list[float], other: list[float]) -> Finding:
    changes = {
        ", ".join(row.key for row in unit): abs(noise / loss - 1)
        for unit, loss, noise in zip(units, own, other, strict=True)
        if loss  # a row without any has failed already
    }
    if not changes:
        return Finding(NOTE, "audio is heard", "cannot be told: these rows have no loss, whatever is heard")
    deaf = [key for key, change in changes.items() if not change]
    good = f"noise in its place changes the loss by {min(changes.values()):.1e} to {max(changes.values()):.1e} of it"
    mend = "noise in place of the speech leaves the loss as it is; look at where the family puts the audio vectors"
    return judged("audio is heard", deaf, good, mend)


# ---- what a step does


def check_step(patient: Patient) -> list[Finding]:
    """Forward and backward as the run's first step makes them."""
    train = replace(patient.config.train_conf, compile=False)  # which would take minutes, and changes no number
    parallel.prepare_layers(patient.family, patient.model, replace(patient.config, train_conf=train))
    made = patient.learn()
    precision = "bfloat16" if parallel.use_bfloat16(patient.config) else "float32"
    good = f"loss {made.loss:.2f} and all gradients are finite"
    mend = "the first that is NaN or infinite; look at its weights and at the rows"
    found = [judged(precision, made.broken[:1], good, mend), *check_parts(patient, made)]
    return found if made.broken else [*found, check_float16(patient, made)]


def check_parts(patient: Patient, made: Pass) -> list[Finding]:
    """Whether each part is trained as the config says, and nothing beside the parts."""
    named, found = dict(patient.model.named_parameters()), []
    homeless = set(named)
    for part, modules in patient.family.parts(patient.model).items():
        inside = {id(parameter) for module in modules for parameter in module.parameters()}
        own = [name for name, parameter in named.items() if id(parameter) in inside]
        homeless.difference_update(own)
        trained = [name for name in own if named[name].requires_grad]
        found.append(check_part(patient, made, part, trained) if own else Finding(OK, part, "has no weights"))
    if homeless:
        told = f"{some(sorted(homeless))}: in no part of the family, so no option decides whether they are trained"
        found.append(Finding(FAIL, "parts", told))
    idle = [name for name, parameter in named.items() if parameter.requires_grad and name not in made.moved]
    if idle:
        found.append(Finding(NOTE, "without gradient", f"{some(idle)}: to be trained, but the loss does not use them"))
    return found


def check_part(patient: Patient, made: Pass, part: str, trained: list[str]) -> Finding:
    """One part; ``trained`` are its parameters that a step may change. At its start, half of LoRA has no gradient."""
    conf, key = patient.config.part(part), f"{part}_conf"
    rows = [name for name in trained if name in patient.token_rows]
    weights = [name for name in trained if name not in patient.token_rows]
    deaf = [some(names) for names in (weights, rows) if names and not any(made.moved.get(name) for name in names)]
    how = "frozen" if conf.freeze and not conf.use_lora else f"trained{' by LoRA' * conf.use_lora}"
    if how == "frozen" and weights:
        return Finding(FAIL, part, f"{some(weights)}: trained in spite of {key}.freeze; correct the family's parts")
    if how != "frozen" and not weights:
        return Finding(FAIL, part, f"to be {how}, and nothing of it can be; set {key}.freeze, or leave out its LoRA")
    reached = f": the loss reaches {sum(name in made.moved for name in weights)} tensors" if weights else ""
    good = f"{how}{reached}{'; the added tokens have rows of their own' if rows else ''}"
    return judged(
        part, deaf, good, f"to be trained, and no gradient reaches it; set {key}.freeze, or correct the family"
    )


def check_float16(patient: Patient, made: Pass) -> Finding:
    """Whether the model may be run in float16 elsewhere; training here does not use it.

    Judged by the numbers as they are, not by a pass in autocast, which would leave the sums of residuals in float32,
    where a model that is float16 throughout overflows first, and which takes many times as long on a CPU.
    """
    if not made.over:
        return Finding(OK, "float16", "would not overflow on these rows; training does not use it")
    told = f"would overflow in {made.over[0]}"
    if patient.halves:
        stored = ", ".join(patient.halves)
        return Finding(FAIL, "float16", f"{told}, and {stored} is stored so; start from bfloat16 or float32 weights")
    return Finding(NOTE, "float16", f"{told}, so do not run this model in float16; training does not")


ALL = (
    check_rows,
    check_inventory,
    check_weights,
    check_audio_positions,
    check_answers,
    check_losses,
    check_step,
)
