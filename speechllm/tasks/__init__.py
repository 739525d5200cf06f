"""The tasks, by name. Adding one: a module here and a line in TASKS."""

from __future__ import annotations

from speechllm.errors import UserError
from speechllm.models.base import Family
from speechllm.tasks.base import Task
from speechllm.tasks.sft import Sft

TASKS: dict[str, type[Task]] = {"sft": Sft}


def open_task(name: str, family: Family) -> Task:
    """The task ``name``. Raises UserError for a name not in TASKS, or when the family cannot do what it needs."""
    if name not in TASKS:
        raise UserError(f"unknown task {name}; there are: {', '.join(TASKS)}")
    task = TASKS[name]()
    if not isinstance(family, task.needs):
        raise UserError(f"task {name} needs a family that {task.needs.__name__.lower()}; {family.name} does not")
    return task
