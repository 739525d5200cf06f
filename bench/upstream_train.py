"""Upstream's trainer on a CPU, with a clock: python upstream_train.py [words for funasr-train-ds ...] NUMBERS.json

Two things of funasr 1.4.16 are changed from outside. Its command sets the trainer's device to a GPU's number even with
++device=cpu; here it stays on the CPU. And each step tells the clock that it begins.
"""

import sys

from funasr.bin import train_ds

from bench.clock import Clock

clock = Clock()


class OnCpu(train_ds.Trainer):
    @property
    def device(self):
        return "cpu"

    @device.setter
    def device(self, number):
        pass

    def forward_step(self, model, batch, loss_dict):
        if not model.training:  # its dev set
            return super().forward_step(model, batch, loss_dict=loss_dict)
        clock.step(len(batch["input_ids"]))
        super().forward_step(model, batch, loss_dict=loss_dict)
        clock.loss(loss_dict["loss"])


if __name__ == "__main__":
    numbers = sys.argv.pop()
    train_ds.Trainer = OnCpu
    train_ds.main_hydra()
    clock.write(numbers)
