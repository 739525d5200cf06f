"""The tasks, by name. Adding one: a module here and a line in TASKS."""

from __future__ import annotations

from speechllm.config import RunConfig
from speechllm.errors import UserError
from speechllm.models.base import Family
from speechllm.tasks.alignment import Alignment
from speechllm.tasks.base import Task
from speechllm.tasks.sft import Sft

TASKS: dict[str, type[Task]] = {task.name: task for task in (Sft, Alignment)}


def task_of(family: Family) -> str:
    """The task that a family is for, where nothing says which: the first that it can do."""
    return next(name for name, task in TASKS.items() if isinstance(family, task.needs))


def open_task(name: str, family: Family, config: RunConfig | None = None) -> Task:
    """The task ``name``.

    Args:
        config: the run; left out where nothing is trained.

    Raises:
        UserError: a name not in TASKS, or the family cannot do what the task needs.
    """
    if name not in TASKS:
        raise UserError(f"unknown task {name}; there are: {', '.join(TASKS)}")
    task = TASKS[name](config or RunConfig())
    if not isinstance(family, task.needs):
        raise UserError(f"task {name} needs a family that {task.needs.__name__.lower()}; {family.name} does not")
    return task
