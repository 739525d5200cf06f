"""Training: a small subclass of transformers.Trainer that is exact under accumulation, ranks and resume."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from accelerate import DistributedType
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.trainer import SCHEDULER_NAME

from speechllm import checkpoint, parallel
from speechllm.batching import Rows, StepSampler
from speechllm.config import RunConfig
from speechllm.errors import UserError
from speechllm.examples import Examples
from speechllm.files import write_json
from speechllm.formats.jsonl import JsonlFile
from speechllm.guard import EarlyStop, Termination
from speechllm.progress import Progress, Schedule

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

    def __init__(self, config: RunConfig, objective: Objective, data: JsonlFile, validate: Callable):
        self.config, self.objective, self.validate, self.score = config, objective, validate, None
        self.examples = Examples(config, objective.family, objective.task)
        args = training_arguments(config)
        parallel.prepare_layers(objective.family, objective.model, config)
        if config.train_conf.use_fsdp and args.world_size > 1:
            parallel.shard(objective, args.bf16)
            objective.is_distributed_loading_by_transformers = True  # Trainer's word for: sharded already, do not wrap
        elif config.train_conf.use_fsdp:
            log.warning("train_conf.use_fsdp: there is one process alone, so nothing is sharded")
        super().__init__(objective, args, train_dataset=data)
        steps_per_epoch = len(self.sampler()) // config.train_conf.accum_grad
        self.progress, self.termination = Progress(), Termination()
        self.early_stop = EarlyStop(config.train_conf.early_stop, objective.task.higher_is_better)
        for callback in (
            Schedule(config.train_conf, steps_per_epoch),
            self.early_stop,
            self.termination,
            self.progress,
        ):
            self.add_callback(callback)
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

    def get_train_dataloader(self) -> DataLoader:
        workers = self.config.dataset_conf.num_workers
        loader = DataLoader(
            Rows(self.train_dataset, self.examples.example),
            batch_sampler=self.sampler(),
            collate_fn=self.examples.collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=self.termination.spare,
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
        told = torch.tensor([self.termination.wished])
        size = torch.cat([sum(batch["size"] for batch in batches), told]).to(device)
        everywhere = self.accelerator.gather(torch.cat([local, size])[None]).sum(0)
        *size, told = everywhere[len(names) :].tolist()
        self.progress.count(*size)
        self.termination.agreed = told > 0
        self.keys, self.losses = [batch["keys"] for batch in batches], []
        return [batch["inputs"] for batch in batches], dict(zip(names, everywhere[: len(names)], strict=True))

    # ---- loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # DDP averages gradients over ranks, hence the factor; the counts are those of the whole step.
        return model(inputs, num_items_in_batch) * self.accelerator.num_processes

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.losses.append(loss)
        return loss.nan_to_num(0.0, 0.0, 0.0)  # a NaN would stay in Trainer's running sum for ever

    def _get_grad_norm(self, model, grad_norm=None):
        """The norm before the update; a step that is not finite on any rank is left out on all."""
        norm = super()._get_grad_norm(model, grad_norm)
        finite = torch.stack(self.losses).isfinite()
        good = finite.all() & torch.tensor(float(norm), device=finite.device).isfinite()
        if not self.accelerator.gather(good[None]).all():
            self.leave_out(model, finite.tolist())
        return norm

    def leave_out(self, model: nn.Module, finite: list[bool]) -> None:
        """Drop the gradients of this step, name its utterances, and end the run where that happens too often.

        Args:
            finite: whether the loss of each of this rank's micro-batches is a number.
        """
        step, most = self.state.global_step + 1, self.config.train_conf.max_bad_steps
        faulty = gather_object([key for keys, good in zip(self.keys, finite, strict=True) if not good for key in keys])
        suspects = faulty or gather_object([key for keys in self.keys for key in keys])
        what = f"step {step}: the {'loss' if faulty else 'gradient'} is NaN or infinite with {', '.join(suspects)}"
        model.zero_grad()  # without gradients the optimiser changes nothing
        self.log({"bad_step": step})
        bad = sum("bad_step" in row for row in self.state.log_history)
        if bad > most or self.accelerator.distributed_type == DistributedType.DEEPSPEED:  # it has updated already
            raise UserError(
                f"{what}; {bad} such steps, train_conf.max_bad_steps is {most}. Look at these utterances with "
                "tools/validate_data.py ++decode=true, or lower optim_conf.lr"
            )
        if self.is_world_process_zero():
            log.warning("%s; left out (%d of at most %d)", what, bad, most)

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        model, loader = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        self.rehearse(model)
        return model, loader

    def rehearse(self, model: nn.Module) -> None:
        """The largest batch forward and backward, without an update: out of memory shows now, not after hours."""
        if self.is_deepspeed_enabled:  # its backward pass would also update
            log.info("the largest batch is not tried before the first step under DeepSpeed")
            return
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        draws = self.sampler().largest()
        with torch.random.fork_rng(devices):
            rows = Rows(self.train_dataset, self.examples.example)
            batch = self.examples.collate([rows[draw] for draw in draws])
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
                    "dataset_conf.batch_size and raise train_conf.accum_grad, or set train_conf.gradient_checkpointing"
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
        made = os.path.join(home, "saving", name)
        with checkpoint.saving(os.path.join(home, "saving")):
            self.args.output_dir = os.path.join(home, "saving")
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.output_dir = home
            if self.args.should_save and self.score is not None:
                write_json(os.path.join(made, checkpoint.SCORE), self.score)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
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
        checkpoint.save_trained(self.objective.model, output_dir, self.args.should_save)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        checkpoint.load_trained(self.objective.model, [resume_from_checkpoint])

    def _save_optimizer_and_scheduler(self, output_dir) -> None:
        if not parallel.is_sharded(self.objective):
            return super()._save_optimizer_and_scheduler(output_dir)
        parallel.save_optimizer(self.objective, self.optimizer, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, SCHEDULER_NAME))

    def _load_optimizer_and_scheduler(self, folder) -> None:
        if not parallel.is_sharded(self.objective):
            return super()._load_optimizer_and_scheduler(folder)
        parallel.load_optimizer(self.objective, self.optimizer, folder)
        self.lr_scheduler.load_state_dict(torch.load(os.path.join(folder, SCHEDULER_NAME), weights_only=True))


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
        bf16=parallel.use_bfloat16(config) and not train.use_deepspeed,
        deepspeed=parallel.deepspeed_config(config),
        use_cpu=not torch.accelerator.is_available(),  # or ranks without a GPU would not know of each other
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        log_level="warning",
    )
