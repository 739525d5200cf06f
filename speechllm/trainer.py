"""Training: a small subclass of transformers.Trainer that is exact under accumulation, ranks and resume."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
import yaml
from accelerate.data_loader import prepare_data_loader
from torch import nn
from torch.utils.data import DataLoader
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

from speechllm import audio, checkpoint, hub
from speechllm.augment import Augment
from speechllm.batching import Draw, Fault, Rows, StepSampler, collate
from speechllm.config import RunConfig, as_dict
from speechllm.errors import UserError
from speechllm.files import atomic_write, write_json
from speechllm.formats.chatml import ChatmlFile
from speechllm.models import open_family
from speechllm.progress import Progress, Schedule, steps
from speechllm.provenance import provenance
from speechllm.sample import Prompt, Sample
from speechllm.tasks import open_task

log = logging.getLogger("speechllm")

# Keys that may differ between a run and its continuation; every other change makes another run.
FREE = {"hub", "output_dir", "max_new_tokens", "num_workers", "log_interval", "resume", "keep_nbest_models"}
FREE |= {"avg_nbest_model"}


class Objective(nn.Module):
    """The one module that is wrapped for training: everything that bears gradient happens in ``forward``."""

    def __init__(self, family: Any, task: Any, model: nn.Module, frozen: list[nn.Module]):
        super().__init__()
        self.family, self.task, self.model = family, task, model
        self.frozen = tuple(frozen)  # a tuple, so that they are not registered a second time

    def forward(self, batch: dict, totals: dict) -> torch.Tensor:
        return self.task.loss(self.family, self.model, batch, totals)

    def train(self, mode: bool = True) -> Objective:
        """Trainer calls this at every step; a frozen part must not get its dropout back."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self


class SpeechTrainer(Trainer):
    """Knows neither the task nor the family.

    Args:
        config: the run.
        objective: what is trained.
        data: Samples to train on.
        validate: given (rank, ranks), decodes the dev set and returns the score, equal on all ranks.
    """

    loss_is_scaled_for_ga = True  # compute_loss divides by the counts of the whole step

    def __init__(self, config: RunConfig, objective: Objective, data: ChatmlFile, validate: Callable):
        self.config, self.objective, self.validate, self.score = config, objective, validate, None
        super().__init__(objective, training_arguments(config), train_dataset=data)
        steps_per_epoch = len(self.sampler()) // config.train_conf.accum_grad
        self.progress = Progress()
        self.add_callback(Schedule(config.train_conf, steps_per_epoch))
        self.add_callback(self.progress)
        self.remove_callback(PrinterCallback)

    # ---- data

    def sampler(self) -> StepSampler:
        conf, args = self.config.dataset_conf, self.args
        return StepSampler(
            self.train_dataset.speech_lengths,
            conf.batch_size,
            conf.batch_type,
            args.world_size,
            args.process_index,
            args.gradient_accumulation_steps,
            args.seed,
        )

    def example(self, sample: Sample, draw: Draw) -> dict:
        conf, objective = self.config.dataset_conf, self.objective
        augment = Augment(conf, self.args.seed, draw.epoch, sample.key)
        wave = audio.read(sample.clip, objective.family.rate, conf.allow_pipes)
        wave = augment.wave(wave, objective.family.rate)
        row = objective.task.example(objective.family, sample, wave, augment)
        return {"row": row, "frames": sample.speech_length, "counts": draw.counts}

    def collate(self, rows: list) -> dict | UserError:
        """A micro-batch with its denominators, or the faults of its rows."""
        faults = [str(row) for row in rows if isinstance(row, Fault)]
        if faults:
            return UserError("; ".join(faults))
        batch = collate([row["row"] for row in rows], self.objective.family.fields(generating=False))
        frames = [row["frames"] for row in rows]
        size = torch.tensor([len(rows), sum(frames), len(rows) * max(frames)])
        if not rows[0]["counts"]:  # the one row of an otherwise empty share
            self.objective.task.silence(batch)
            size.zero_()
        return {"inputs": batch, "counts": self.objective.task.counts(batch), "size": size}

    def get_train_dataloader(self) -> DataLoader:
        workers = self.config.dataset_conf.num_workers
        loader = DataLoader(
            Rows(self.train_dataset, self.example),
            batch_sampler=self.sampler(),
            collate_fn=self.collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),
        )
        # Not accelerator.prepare: it would shard a second time, and drop or double the odd-sized batches.
        return prepare_data_loader(loader, self.args.device, num_processes=1, process_index=0, put_on_device=True)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of one step, and the denominators of its loss over all of them and all ranks."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        for batch in batches:
            if isinstance(batch, UserError):
                raise batch
        names = list(batches[0]["counts"])
        local = torch.stack([sum(batch["counts"][name] for batch in batches) for name in names]).to(device)
        size = sum(batch["size"] for batch in batches).to(device)
        everywhere = self.accelerator.gather(torch.cat([local, size])[None]).sum(0)
        self.progress.count(*everywhere[-3:].tolist())
        return [batch["inputs"] for batch in batches], dict(zip(names, everywhere[:-3], strict=True))

    # ---- loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # DDP averages gradients over ranks, hence the factor; the counts are those of the whole step.
        return model(inputs, num_items_in_batch) * self.accelerator.num_processes

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        model, loader = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        self.rehearse(model)
        return model, loader

    def rehearse(self, model: nn.Module) -> None:
        """The largest batch forward and backward, without an update: out of memory shows now, not after hours."""
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        draws = self.sampler().largest()
        with torch.random.fork_rng(devices):
            rows = Rows(self.train_dataset, self.example)
            batch = self.collate([rows[draw] for draw in draws])
            if isinstance(batch, UserError):
                raise batch
            totals = {name: count.clamp(min=1) for name, count in batch["counts"].items()}
            model.train()
            try:
                with self.compute_loss_context_manager():
                    loss = model(self._prepare_inputs(batch["inputs"]), self._prepare_inputs(totals))
                self.accelerator.backward(loss)
            except torch.OutOfMemoryError as error:
                longest = max(self.train_dataset.speech_lengths[draw.index] for draw in draws) / 100
                raise UserError(
                    f"out of memory on the largest batch ({len(draws)} utterances of up to {longest:.1f} s); lower "
                    "dataset_conf.batch_size, or raise train_conf.accum_grad"
                ) from error
        model.zero_grad()

    # ---- dev set

    def evaluate(self, *args, **kwargs) -> dict:
        self.score = self.validate((self.args.process_index, self.args.world_size))
        log.info("dev at step %d: %s %.2f", self.state.global_step, self.score["metric"], self.score["value"])
        metrics = {f"eval_{self.score['metric']}": self.score["value"]}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # ---- checkpoints

    def _save_checkpoint(self, model, trial) -> None:
        """Trainer's checkpoint, made in a folder of its own and then renamed, so that none is ever half-written."""
        home = self.args.output_dir
        name = f"checkpoint-{self.state.global_step}"
        self.args.output_dir = os.path.join(home, "saving")
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.output_dir = home
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            made = os.path.join(home, "saving", name)
            if self.score is not None:
                write_json(os.path.join(made, checkpoint.SCORE), self.score)
            shutil.rmtree(os.path.join(home, name), ignore_errors=True)
            os.replace(made, os.path.join(home, name))
            os.rmdir(os.path.dirname(made))
            self._forget_worse()
        self.score = None
        self.accelerator.wait_for_everyone()

    def _forget_worse(self) -> None:
        """Keep the best by score on dev, and the newest to go on from."""
        home, keep = self.args.output_dir, self.config.train_conf.keep_nbest_models
        best = checkpoint.ranked(home, self.objective.task.higher_is_better)[:keep]
        for path in checkpoint.checkpoints(home)[:-1]:
            if path not in best:
                dying = os.path.join(home, f"saving-{os.path.basename(path)}")
                os.replace(path, dying)  # so that a kill does not leave half a checkpoint
                shutil.rmtree(dying)

    def _save(self, output_dir=None, state_dict=None) -> None:
        if self.args.should_save:
            os.makedirs(output_dir, exist_ok=True)
            checkpoint.save_trained(self.objective.model, output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        checkpoint.load_trained(self.objective.model, [resume_from_checkpoint])


def training_arguments(config: RunConfig) -> TrainingArguments:
    """Our config in Trainer's words. Validation and checkpoints are timed by Schedule, not by Trainer."""
    train, optim = config.train_conf, config.optim_conf
    os.environ["TENSORBOARD_LOGGING_DIR"] = os.path.join(config.output_dir, "tensorboard")
    return TrainingArguments(
        output_dir=config.output_dir,
        num_train_epochs=train.max_epoch,
        gradient_accumulation_steps=train.accum_grad,
        max_grad_norm=train.grad_clip,
        learning_rate=optim.lr,
        weight_decay=optim.weight_decay,
        adam_beta1=optim.betas[0],
        adam_beta2=optim.betas[1],
        lr_scheduler_type=config.scheduler_conf.type,
        warmup_steps=config.scheduler_conf.warmup,
        logging_steps=train.log_interval,
        logging_nan_inf_filter=False,
        eval_strategy="no",
        save_strategy="no",
        seed=train.seed,
        report_to=["tensorboard"],
        use_cpu=not torch.accelerator.is_available(),  # or ranks without a GPU would not know of each other
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        log_level="warning",
    )


def train(config: RunConfig, score_dev: Callable) -> None:
    """A whole run: from the config to a finished model in ``config.output_dir``.

    Args:
        score_dev: :func:`speechllm.decode.score_dev`; handed in, since the trainer stands below the decoder.

    Raises:
        UserError: a fault in the config, the data or the checkpoint.
    """
    for key in ("train_data_set_list", "valid_data_set_list"):
        if not getattr(config, key):
            raise UserError(f"{key} is not set; give a JSONL made by tools/scp2jsonl.py")
    if config.train_conf.avg_nbest_model > max(config.train_conf.keep_nbest_models, 1):
        raise UserError(
            "train_conf.avg_nbest_model is more than train_conf.keep_nbest_models; keep as many as you average"
        )
    out = config.output_dir
    os.makedirs(out, exist_ok=True)
    keep_log(out)
    share_cores(config.dataset_conf.num_workers)
    data, dev = ChatmlFile(config.train_data_set_list), ChatmlFile(config.valid_data_set_list)
    set_seed(config.train_conf.seed)
    family = open_family(config.family, hub.resolve(config.model, config.hub))
    task = open_task(config.task, family)
    model = family.load()
    frozen = checkpoint.set_trainable(family, model, config)
    hours = [sum(rows.speech_lengths) / 360_000 for rows in (data, dev)]
    log.info("train: %d utterances, %.2f h; dev: %d utterances, %.2f h", len(data), hours[0], len(dev), hours[1])
    log.info("what is trained:\n%s", checkpoint.parameter_table(family, model))

    def validate(place: tuple[int, int]) -> dict:
        return score_dev(family, task, model, dev, dev.speech_lengths, config, place)

    trainer = SpeechTrainer(config, Objective(family, task, model, frozen), data, validate)
    newest = prepare_folder(trainer, config, data)
    with logging_redirect_tqdm(), trainer.progress:
        trainer.train(resume_from_checkpoint=newest)
    finish(trainer, data.prompts.most_common(1)[0][0], validate)


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


def prepare_folder(trainer: SpeechTrainer, config: RunConfig, data: ChatmlFile) -> str | None:
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
    checkpoint.load_trained(model, chosen)
    if trainer.args.should_save:
        checkpoint.save_model(objective.family, task, model, prompt, config.max_new_tokens, out)
        names = ", ".join(os.path.basename(path) for path in chosen)
        log.info("finished: %s holds %s, dev %.2f", out, names, value)
    trainer.accelerator.wait_for_everyone()
