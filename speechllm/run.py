"""A whole training run: from its config to a finished model in its folder."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import yaml
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import set_seed

from speechllm import checkpoint, freeze_policy, hub, parallel
from speechllm.config import RunConfig, as_dict
from speechllm.errors import UserError
from speechllm.files import atomic_write, write_json
from speechllm.formats.jsonl import JsonlFile
from speechllm.models import open_family
from speechllm.progress import steps
from speechllm.provenance import provenance
from speechllm.sample import Prompt
from speechllm.tasks import open_task
from speechllm.trainer import Objective, SpeechTrainer

log = logging.getLogger("speechllm")

# Keys that may differ between a run and its continuation; every other change makes another run.
FREE = {"hub", "output_dir", "max_new_tokens", "num_workers", "log_interval", "resume", "keep_nbest_models"}
FREE |= {"avg_nbest_model", "early_stop", "max_bad_steps", "gradient_checkpointing", "compile"}


def train(config: RunConfig, score_dev: Callable, notes: Sequence[str] = ()) -> None:
    """A whole run: from the config to a finished model in ``config.output_dir``.

    Args:
        score_dev: :func:`speechllm.decode.score_dev`; handed in, since the trainer stands below the decoder.
        notes: lines for the beginning of the log.

    Raises:
        UserError: a fault in the config, the data or the checkpoint.
    """
    if not config.train_data_set_list:
        raise UserError("train_data_set_list is not set; give a JSONL made by tools/scp2jsonl.py")
    if config.train_conf.avg_nbest_model > max(config.train_conf.keep_nbest_models, 1):
        raise UserError(
            "train_conf.avg_nbest_model is more than train_conf.keep_nbest_models; keep as many as you average"
        )
    out = config.output_dir
    os.makedirs(out, exist_ok=True)
    keep_log(out)
    for note in notes:
        log.info("%s", note)
    share_cores(config.dataset_conf.num_workers)
    data, dev = open_data(config)
    set_seed(config.train_conf.seed)
    family = open_family(config.family, hub.resolve(config.model, config.hub))
    task = open_task(config.task, family, config)
    model = family.load()
    hours = [sum(rows.speech_lengths) / 360_000 for rows in (data, dev)]
    log.info("train: %d utterances, %.2f h; dev: %d utterances, %.2f h", len(data), hours[0], len(dev), hours[1])
    config = freeze_policy.decide(config, hours[0], family.parts(model))
    frozen = checkpoint.set_trainable(family, model, config)
    log.info("what is trained:\n%s", checkpoint.parameter_table(family, model))

    objective = Objective(family, task, model, frozen)

    def validate(place: tuple[int, int]) -> dict:
        with parallel.gathered(objective, parallel.use_bfloat16(config)):
            return score_dev(family, task, model, dev, dev.speech_lengths, config, place)

    trainer = SpeechTrainer(config, objective, data, validate)
    newest = prepare_folder(trainer, config, data)
    if not (newest and trainer.early_stop.due(checkpoint.history(newest))):
        with logging_redirect_tqdm(), trainer.progress, trainer.termination:
            trainer.train(resume_from_checkpoint=newest)
    if trainer.termination.agreed:
        log.info("stopped by SIGTERM, all is saved; the same command goes on from %s", checkpoint.checkpoints(out)[-1])
        sys.exit(128 + signal.SIGTERM)
    finish(trainer, data.prompts.most_common(1)[0][0], validate)


def open_data(config: RunConfig) -> tuple[JsonlFile, JsonlFile]:
    """What is trained on, and the dev set; where none is given, a part of the first is held out as such."""
    data = JsonlFile(config.train_data_set_list)
    if config.valid_data_set_list:
        return data, JsonlFile(config.valid_data_set_list)
    train, dev = data.hold_out()
    log.info(
        "valid_data_set_list is not set: %d of the %d rows of %s are held out, and make the dev set",
        len(dev),
        len(data),
        config.train_data_set_list,
    )
    return train, dev


def share_cores(workers: int) -> None:
    """Leave cores to the loader: torch's threads wait actively, and slow down whoever shares a core with them."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(torch.get_num_threads() - workers, 1))


def keep_log(folder: str) -> None:
    """Everything that is logged goes to ``train.log`` too."""
    handler = logging.FileHandler(os.path.join(folder, "train.log"), encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    steps.addHandler(handler)
    steps.propagate = False
    if int(os.environ.get("RANK", "0")):  # one voice: the other ranks speak only of what goes wrong
        logging.getLogger().setLevel(logging.WARNING)


def prepare_folder(trainer: SpeechTrainer, config: RunConfig, data: JsonlFile) -> str | None:
    """Write run.yaml and provenance.json; find the checkpoint to go on from.

    Raises:
        UserError: the folder holds another run, or the same one with resume off.
    """
    out = config.output_dir
    told = {
        "config": as_dict(config),
        "ranks": trainer.args.world_size,
        "rows": len(data),
        "frames": sum(data.speech_lengths),
    }
    newest = (checkpoint.checkpoints(out) or [None])[-1]
    state = os.path.join(out, "resume.json")
    if newest and not config.train_conf.resume:
        raise UserError(f"{out} holds checkpoints of an earlier run; remove the folder or give another ++output_dir")
    if newest:
        with open(state, encoding="utf-8") as file:
            differ = differences(json.load(file), told)
        if differ:
            raise UserError(
                f"{out} holds a run that was made otherwise: {'; '.join(differ)}. Give another ++output_dir, or remove "
                "the folder to start anew"
            )
        log.info("going on from %s", newest)
    if trainer.args.should_save:
        checkpoint.clear_leftovers(out)
        with atomic_write(os.path.join(out, "run.yaml")) as file:
            yaml.safe_dump(as_dict(config), file, sort_keys=False, allow_unicode=True)
        write_json(os.path.join(out, "provenance.json"), provenance())
        write_json(state, told)
    trainer.accelerator.wait_for_everyone()
    return newest


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """``key: before -> now`` for every leaf that differs, but for the keys in FREE."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [key for key in {**before, **now} if key not in FREE]
        pairs = ((before.get(key), now.get(key), f"{name}.{key}" if name else key) for key in keys)
        return [text for pair in pairs for text in differences(*pair)]
    return [] if before == now else [f"{name.removeprefix('config.')} {before} -> {now}"]


def finish(trainer: SpeechTrainer, prompt: Prompt, validate: Callable) -> None:
    """Put the best checkpoint, or the mean of the best when that is better on dev, into the run's folder.

    Args:
        prompt: the one that most rows of the training data carry; decoding asks the same of input that brings none.
    """
    out, objective, config = trainer.args.output_dir, trainer.objective, trainer.config
    task, model = objective.task, objective.model
    best = checkpoint.ranked(out, task.higher_is_better)[: max(config.train_conf.avg_nbest_model, 1)]
    with open(os.path.join(best[0], checkpoint.SCORE), encoding="utf-8") as file:
        value = json.load(file)["value"]
    chosen = best[:1]
    if len(best) > 1:
        checkpoint.load_trained(model, best)
        mean = validate((trainer.args.process_index, trainer.args.world_size))["value"]
        log.info("dev: best checkpoint %.2f, mean of the %d best %.2f", value, len(best), mean)
        if mean >= value if task.higher_is_better else mean <= value:
            chosen, value = best, mean
    if trainer.args.should_save:
        whole = checkpoint.rebuild(objective.family, config, chosen)
        checkpoint.save_model(objective.family, task, whole, prompt, config.max_new_tokens, out)
        names = ", ".join(os.path.basename(path) for path in chosen)
        log.info("finished: %s holds %s, dev %.2f", out, names, value)
    trainer.accelerator.wait_for_everyone()
