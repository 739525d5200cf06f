"""Training: a small subclass of transformers.Trainer that is exact under accumulation, ranks and resume."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch import nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainingArguments

from speechllm import audio, checkpoint
from speechllm.augment import Augment
from speechllm.batching import Draw, Fault, Rows, StepSampler, collate
from speechllm.config import RunConfig
from speechllm.errors import UserError
from speechllm.files import write_json
from speechllm.formats.chatml import ChatmlFile
from speechllm.progress import Progress, Schedule
from speechllm.sample import Sample

log = logging.getLogger("speechllm")

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
            self.train_dataset.sizes,
            conf.batch_size * args.world_size * args.gradient_accumulation_steps,
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
