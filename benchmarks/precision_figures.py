"""Draws the curves of benchmarks.precision, and prints its table.

    python -m benchmarks.precision_figures results.jsonl [--plot curve.png]

The table is of the last step: means over seeds, and their standard deviation. A gap is an arm's held-out loss minus
FP32's of the same seed; it is to be held against the deviation of FP32's own losses, and the distance against that of
FP32 with other noise.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Point = dict[str, Any]  # a line of benchmarks.precision: the fields of its Point

NAMES = {
    "fp32": "LoRA: FP32",
    "bf16": "LoRA: BF16, adapter FP32 (loraq)",
    "stochastic": "LoRA: BF16, adapter too, rounded stochastically",
    "pure_bf16": "LoRA: BF16, adapter too, rounded to the nearest",
    "other_draws": "LoRA: FP32, other noise and order",
    "whole_fp32": "U-Net: FP32",
    "whole_bf16": "U-Net: BF16, masters FP32 (loraq)",
    "whole_stochastic": "U-Net: BF16, rounded stochastically (loraq)",
    "whole_pure_bf16": "U-Net: BF16, rounded to the nearest",
}
_STYLES = ("-", (0, (4, 4)), (0, (1, 2)), "-")  # so that FP32 shows through those that lie on it


def read(path: Path) -> list[Point]:
    """The points of a file of results; the first line, about the machine, is none."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "arm" in line]


def plot(points: Sequence[Point], path: Path) -> None:
    """Held-out loss over step, a panel for each kind of training and learning rate: the seeds' mean, and thin each."""
    panels = sorted({(of_whole(point), point["learning_rate"]) for point in points})
    lines = -(-len(panels) // 2)
    figure = Figure(figsize=(9, 3.2 * lines), layout="constrained")
    axes = figure.subplots(lines, min(2, len(panels)), squeeze=False).flatten()
    for panel, (whole, rate) in zip(axes, panels, strict=False):
        arms = [arm for arm in NAMES if arm.startswith("whole") == whole and arm != "other_draws"]
        for number, (arm, style) in enumerate(zip(arms, _STYLES, strict=True)):
            by_seed: dict[int, dict[int, float]] = defaultdict(dict)
            for point in points:
                if (point["arm"], point["learning_rate"]) == (arm, rate):
                    by_seed[point["seed"]][point["step"]] = point["validation_loss"]
            if not by_seed:
                continue
            steps = sorted(set.intersection(*map(set, by_seed.values())))
            for losses in by_seed.values():
                panel.plot(*zip(*sorted(losses.items()), strict=True), color=f"C{number}", linewidth=0.5, alpha=0.5)
            means = [mean(losses[step] for losses in by_seed.values()) for step in steps]
            name = NAMES[arm].partition(": ")[2]
            panel.plot(steps, means, color=f"C{number}", linestyle=style, linewidth=2, label=name)
        panel.set(title=f"{'U-Net' if whole else 'LoRA'}, learning rate {rate:g}", xlabel="step")
        panel.set(ylabel="loss of stars held out")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    FigureCanvasAgg(figure).print_figure(str(path), dpi=90, pil_kwargs={"optimize": True})


def of_whole(point: Point) -> bool:
    """Whether all of the U-Net was trained, in place of an adapter."""
    return point["arm"].startswith("whole")


def table(points: Sequence[Point]) -> str:
    """Markdown, one row an arm and learning rate, at the last step that all its seeds reached."""
    rows = [
        "| learning rate | arm | seeds | step | held-out loss | gap to FP32 | distance | A moved | B moved | stars |"
    ]
    rows.append("| --- " * 10 + "|")
    for whole, rate in sorted({(of_whole(point), point["learning_rate"]) for point in points}):
        of_rate = [point for point in points if (of_whole(point), point["learning_rate"]) == (whole, rate)]
        fp32 = "whole_fp32" if whole else "fp32"
        theirs = {(point["seed"], point["step"]): point for point in of_rate if point["arm"] == fp32}
        for arm in NAMES:
            ours = {(point["seed"], point["step"]): point for point in of_rate if point["arm"] == arm}
            if not ours:
                continue
            seeds = sorted({seed for seed, _ in ours})
            step = min(max(step for at, step in ours if at == seed) for seed in seeds)
            last = [ours[seed, step] for seed in seeds]
            gaps = [
                ours[seed, step]["validation_loss"] - theirs[seed, step]["validation_loss"]
                for seed in seeds
                if (seed, step) in theirs
            ]
            distances = [point["distance"] for point in last if point["distance"] is not None]
            cells = [f"{rate:g}", NAMES[arm], str(len(seeds)), str(step)]
            cells += [_spread([point["validation_loss"] for point in last]), "" if arm == fp32 else _spread(gaps)]
            cells += ["" if arm == fp32 or not distances else f"{mean(distances):.3f}"]
            cells += [_over_all(ours, seeds, step, which) for which in ("moved_a", "moved_b")]
            stars = [point["stars"] for point in last if point["stars"] is not None]
            cells += [f"{mean(stars):.0%}" if stars else ""]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _over_all(points: dict[tuple[int, int], Point], seeds: Sequence[int], step: int, which: str) -> str:
    """The mean over all steps, from means since the point before; points lie equally far apart."""
    shares = [point[which] for (seed, at), point in points.items() if seed in seeds and at <= step]
    return "" if None in shares else f"{mean(shares):.1%}"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{mean(values):.5f}" + (f" ± {stdev(values):.5f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the curves of benchmarks.precision, and print its table.")
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    points = [point for path in arguments.results for point in read(path)]
    if arguments.plot:
        plot(points, arguments.plot)
    print(table(points))


if __name__ == "__main__":
    main()
