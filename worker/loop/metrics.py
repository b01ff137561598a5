"""metrics.jsonl, one line a step and one a validation, and the curve drawn from it."""

import json
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from worker.loop.train import StepResult
from worker.loop.validation import ValidationResult

_SMOOTHING = 0.95  # of the drawn curve: single losses vary with the timestep far more than training changes them


class Metrics:
    """The steps of a training, kept in a file that is complete after every step.

    Args:
        path: of metrics.jsonl; begun anew.
        earlier: the file of the training that is gone on from, or None.
    """

    def __init__(self, path: Path, earlier: Path | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = earlier.read_text(encoding="utf-8") if earlier else ""
        path.write_text(lines, encoding="utf-8")
        self.path = path
        told = [json.loads(line) for line in lines.splitlines()]
        self.losses: list[float] = [line["loss"] for line in told if "loss" in line]
        self.validations: dict[int, float] = {
            line["step"]: line["validation_loss"] for line in told if "validation_loss" in line
        }
        self._file = path.open("a", encoding="utf-8")

    def add(self, result: StepResult) -> None:
        self.losses.append(result.loss)
        self._file.write(json.dumps(asdict(result)) + "\n")
        self._file.flush()

    def add_validation(self, result: ValidationResult) -> None:
        self.validations[result.step] = result.validation_loss
        self._file.write(json.dumps(asdict(result)) + "\n")
        self._file.flush()

    def ends(self) -> tuple[float, float]:
        """Mean loss of the first and of the last tenth of the steps, at least one."""
        tenth = max(1, len(self.losses) // 10)
        return sum(self.losses[:tenth]) / tenth, sum(self.losses[-tenth:]) / tenth

    def plot(self, path: Path) -> None:
        """Draw loss over step: every step thin, and smoothed; and that of held-out pictures, if there are any."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second to import, once, at the end
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.5), layout="constrained")  # without pyplot: no global state, no display
        axes = figure.add_subplot(xlabel="step", ylabel="loss")
        steps = range(1, len(self.losses) + 1)
        axes.plot(steps, self.losses, linewidth=0.6, alpha=0.4, label="each step")
        axes.plot(steps, smoothed(self.losses), linewidth=1.8, label="smoothed")
        if self.validations:
            axes.plot(*zip(*sorted(self.validations.items()), strict=True), marker="o", markersize=3, label="held out")
        axes.legend()
        axes.grid(alpha=0.3)
        FigureCanvasAgg(figure).print_png(str(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def smoothed(values: list[float], smoothing: float = _SMOOTHING) -> list[float]:
    """Exponential average, corrected for its start as Adam's is (Kingma and Ba 2014, arXiv:1412.6980, section 3)."""
    average, result = 0.0, []
    for count, value in enumerate(values, start=1):
        average = smoothing * average + (1 - smoothing) * value
        result.append(average / (1 - smoothing**count))
    return result
