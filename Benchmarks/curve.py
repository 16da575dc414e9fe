#!/usr/bin/env python3
"""Draws the tables that `make curve` prints, a panel for each number of threads.

    curve.py TABLE SOFTMAX_PICTURE LINEAR_ATTENTION_PICTURE

Time against size for softmax, tokens per second against length for linear attention.
"""

import re
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ALGORITHMS = ["three-pass", "online", "two-pass"]
LENGTHS = ["linear attention, forward", "linear attention, backward", "exact attention, forward"]


def read(path, title):
    """Panels (threads, sizes, columns, the whole title) of the tables whose titles match."""
    panels = []
    for line in open(path):
        if " thread" in line and "," in line and not re.match(r"^ *\d+( +[\d.]+){3}$", line):
            matches = re.search(title, line)
            threads = re.search(r"\d+ threads?", line)[0]
            panels.append((threads, [], [[], [], []], line) if matches else None)
        elif panels and panels[-1] and re.match(r"^ *\d+( +[\d.]+){3}$", line):
            size, *values = line.split()
            panels[-1][1].append(int(size))
            for column, value in zip(panels[-1][2], values):
                column.append(float(value))
    return [panel for panel in panels if panel]


def draw(panels, names, picture, ticks, x_label, y_label, is_logarithmic=False):
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5 * len(panels), 3.4), sharey=True, squeeze=False,
        layout="constrained")
    for axis, (title, sizes, columns, _) in zip(axes[0], panels):
        for name, values in zip(names, columns):
            is_computed = is_logarithmic and name.startswith("exact")
            axis.plot(sizes, values, marker=".", label=name, linestyle="--" if is_computed else "-")
        axis.set_xscale("log", base=2)
        axis.set_xticks(*ticks)
        if is_logarithmic:
            axis.set_yscale("log")
        else:
            axis.set_ylim(bottom=0)
        axis.set_xlabel(x_label)
        axis.set_title(title)
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel(y_label)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncol=len(names))
    figure.savefig(picture, dpi=110)


def main():
    table, softmax, linear_attention = sys.argv[1:]
    panels = read(table, "one row")
    if panels:
        ticks = [2**10, 2**14, 2**18, 2**22, 2**26], ["1 KB", "16 KB", "256 KB", "4 MB", "64 MB"]
        draw(panels, ALGORITHMS, softmax, ticks, "one row of float32", "ns an entry")
    panels = read(table, "exact attention")
    if panels:
        shape = re.match(r"(.*?), float32", panels[0][3])[1]
        measured = re.search(r"measured at (\d+)", panels[0][3])[1]
        names = LENGTHS[:2] + [f"{LENGTHS[2]}: matmul, softmax, matmul\nof all pairs at {measured}, "
                               "time by its square"]
        ticks = [2**e for e in range(10, 18)], [f"{2**e >> 10}k" for e in range(10, 18)]
        draw(panels, names, linear_attention, ticks, f"tokens ({shape})", "tokens/s", True)


if __name__ == "__main__":
    main()
