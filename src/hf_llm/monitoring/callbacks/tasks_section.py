"""The section of a recipe that names benchmarks to run while a model trains: `pretrain.evaluate_tasks`."""

from dataclasses import dataclass, field


@dataclass
class TasksSection:
    """Benchmarks that are scored during training, on a fixed number of documents."""

    tasks: list[str] = field(default_factory=list)
    """Names of multiple-choice tasks, as in `evaluate.tasks`; without any there are none."""
    task_data: str | None = None
    """A folder with files of the tasks, as `evaluate.task_data`; what it lacks comes from the Hub."""
    documents: int = 200
    """Documents of each task that one evaluation scores, the first ones."""
    every: int = 1
    """Evaluations between two scores of the tasks."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.documents < 1:
            raise ValueError("every and documents must be at least 1; leave `tasks` out for no tasks")
