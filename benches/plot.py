#!/usr/bin/env python3
"""Writes benches/RESULTS.md's tables and benches/results/*.svg from what the benchmarks left.

    cargo bench --bench alloc --bench memory --bench tail && python3 benches/plot.py

It reads criterion's estimates (the medians), and memory.csv and tail.csv, in the target folder:
`target`, or $CARGO_TARGET_DIR. Python 3.8 or later, no packages. What was not measured is left out
of the pictures, and is a dash in the tables.
"""

import csv
import datetime
import glob
import json
import math
import os
import platform
import re
import sys
from html import escape

HERE = os.path.dirname(os.path.abspath(__file__))
TARGET = os.environ.get("CARGO_TARGET_DIR", os.path.join(HERE, "..", "target"))
PAGE = os.path.join(HERE, "RESULTS.md")

# Of the benchmark `alloc`; others may have left results as well.
GROUPS = ["pair", "batch", "replace", "fill", "drain", "threads", "handoff", "workloads", "new_in"]
CPUS = [2, 64, 256]
COUNTS = [1, 10, 100, 1000, 10_000, 100_000]
SIZES = [8, 24, 72, 200, 1000, 1100]

# Subject: name, colour on light and on dark ground, whether the line is dashed.
SUBJECTS = {
    "plain": ("plain", "#0072b2", "#56b4e9", False),
    "accounted": ("accounted", "#c2410c", "#ff9a52", False),
    "plain_uncached": ("plain, no caches", "#0072b2", "#56b4e9", True),
    "accounted_uncached": ("accounted, no caches", "#c2410c", "#ff9a52", True),
    "padded_array": ("padded array", "#00785a", "#3dd6a8", False),
    "malloc": ("malloc of 8 bytes", "#666666", "#a8a8a8", False),
    "free_list": ("free list", "#9c2f87", "#e58ac9", False),
    "free_list_cleared": ("free list, cleared", "#9c2f87", "#e58ac9", True),
    "bare_clearing": ("bare clearing", "#666666", "#a8a8a8", True),
    "bare_writing": ("bare writing", "#666666", "#a8a8a8", True),
}
WAYS = ["plain", "accounted", "plain_uncached", "accounted_uncached"]


def estimates():
    """Medians in nanoseconds by full name, and when the first and the last were measured."""
    medians, times = {}, []
    for path in glob.glob(os.path.join(TARGET, "criterion", "**", "new", "estimates.json"), recursive=True):
        with open(os.path.join(os.path.dirname(path), "benchmark.json"), encoding="utf-8") as file:
            name = json.load(file)["full_id"]
        if name.split("/")[0] not in GROUPS:
            continue
        with open(path, encoding="utf-8") as file:
            medians[name] = json.load(file)["median"]["point_estimate"]
        times.append(os.path.getmtime(path))
    if not medians:
        sys.exit(f"no results of criterion in {TARGET}")
    return medians, times


def rows_of(name):
    """The rows of a CSV file of a benchmark."""
    path = os.path.join(TARGET, "tmp", name)
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def time_text(nanoseconds):
    if nanoseconds is None:
        return "–"
    for factor, unit in [(1, "ns"), (1e3, "µs"), (1e6, "ms"), (1e9, "s")]:
        value = nanoseconds / factor
        if value < 999.5 or unit == "s":
            digits = 2 if value < 0.995 else 1 if value < 9.95 else 0
            return f"{value:.{digits}f} {unit}"


def count_text(count):
    return f"{count:,}".replace(",", " ")


# ---------------------------------------------------------------- tables


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def names(subjects):
    return [SUBJECTS[subject][0] for subject in subjects]


def ratio(ours, rival):
    return "–" if ours is None or rival is None else f"{ours / rival:.2f}"


def tables(medians):
    median = medians.get
    out = {}

    subjects = WAYS + ["padded_array"]
    rows = []
    for cpus in CPUS:
        for size in SIZES:
            times = [median(f"pair/{cpus}_cpus/{subject}/{size}") for subject in subjects]
            rows.append([str(cpus), count_text(size)] + [time_text(time) for time in times]
                        + [ratio(times[0], times[-1])])
    out["pair"] = table(["CPUs", "bytes"] + names(subjects) + ["plain / padded array"], rows)

    subjects = ["plain", "malloc", "free_list", "free_list_cleared", "bare_clearing", "bare_writing"]
    rows = []
    for cpus in CPUS:
        times = [median(f"pair/{cpus}_cpus/{subject}/8") for subject in subjects]
        rows.append([str(cpus)] + [time_text(time) for time in times] + [ratio(times[0], times[3])])
    out["rivals"] = table(["CPUs"] + names(subjects) + ["plain / free list, cleared"], rows)

    subjects = WAYS + ["padded_array", "malloc", "free_list"]
    for group in ["batch", "replace"]:
        rows = []
        for cpus in CPUS:
            for count in COUNTS:
                times = [median(f"{group}/{cpus}_cpus/{subject}/{count}") for subject in subjects]
                rows.append([str(cpus), count_text(count)] + [time_text(time) for time in times]
                            + [ratio(times[0], times[4])])
        out[group] = table(["CPUs", "live"] + names(subjects) + ["plain / padded array"], rows)

    subjects = WAYS + ["many_10", "many_100", "many_700", "padded_array", "malloc"]
    rows = []
    for group in ["fill", "drain"]:
        for cpus in CPUS:
            times = [median(f"{group}/{cpus}_cpus/{subject}") for subject in subjects]
            rows.append([group, str(cpus)] + [time_text(time) for time in times])
    head = [SUBJECTS[s][0] if s in SUBJECTS else "batches of " + s[5:] for s in subjects]
    head[7] += " for 2 CPUs"
    out["fill"] = table(["", "CPUs"] + head, rows)

    subjects = WAYS + ["padded_array", "malloc", "free_list"]
    rows = []
    for cpus in CPUS:
        for shape in ["pair", "batch_1000"]:
            for threads in [1, 2]:
                times = [median(f"threads/{cpus}_cpus/{subject}/{shape}/{threads}") for subject in subjects]
                rows.append([str(cpus), shape.replace("_1000", " of 1 000"), str(threads)]
                            + [time_text(time) for time in times])
    out["threads"] = table(["CPUs", "load", "threads"] + names(subjects), rows)
    rows = []
    for cpus in CPUS:
        times = [median(f"handoff/{cpus}_cpus/{subject}") for subject in subjects]
        rows.append([str(cpus)] + [time_text(time) for time in times])
    out["handoff"] = table(["CPUs"] + names(subjects), rows)

    recordings = sorted({name.split("/")[1] for name in medians if name.startswith("workloads/")})
    rows = []
    for recording in recordings:
        for cpus in CPUS[:2]:
            of = [median(f"workloads/{recording}/{cpus}_cpus/{subject}")
                  for subject in ["ours", "ours_uncached", "padded_array"]]
            malloc = median(f"workloads/{recording}/malloc")
            if of[0] is not None:
                rows.append([recording, str(cpus)] + [time_text(time) for time in of + [malloc]]
                            + [ratio(of[0], of[2])])
    out["workloads"] = table(["recording", "CPUs", "ours", "without caches", "padded array",
                              "malloc of one copy", "ours / padded array"], rows)

    rows = []
    for cpus in CPUS:
        times = [median(f"new_in/{cpus}_cpus/{name}") for name in ["object", "accounted_object", "padded_array"]]
        times.append(median(f"pair/{cpus}_cpus/bare_writing/8"))
        rows.append([str(cpus)] + [time_text(time) for time in times] + [ratio(times[0], times[2])])
    out["new_in"] = table(["CPUs", "plain", "accounted", "padded array", "bare writing",
                           "plain / padded array"], rows)

    memory = rows_of("memory.csv")
    rows = []
    for row in memory:
        total = float(row["written_rss"]) + float(row["written_page_tables"])
        unwritten = float(row["unwritten_rss"]) + float(row["unwritten_page_tables"])
        payload = 2 * int(row["size"])
        rows.append([row["size"], row["cpus"], SUBJECTS[row["subject"]][0], f"{unwritten:.1f}",
                     f"{float(row['written_rss']):.1f}", f"{float(row['written_page_tables']):.1f}",
                     f"{total:.1f}", f"{total / payload:.2f}"])
    out["memory"] = table(["bytes", "CPUs", "", "unwritten", "resident", "page tables", "in all",
                           "in all / payload"], rows)

    tail = rows_of("tail.csv")
    percentiles = ["p50", "p99", "p99.9", "p99.99", "longest"]
    rows = []
    loads = {"pair": "pair", "replace_1000": "one of 1 000 replaced",
             "waves_free": "a free on 256 CPUs, in waves"}
    for load in loads:
        for row in (row for row in tail if row["load"] == load):
            subject = "the clock alone" if row["subject"] == "clock" else SUBJECTS[row["subject"]][0]
            rows.append([loads[load], subject]
                        + [time_text(float(row[p])) for p in percentiles])
    out["tail"] = table(["load", "", "50 %", "99 %", "99.9 %", "99.99 %", "longest"], rows)
    return out


def machine(times):
    model = "unknown"
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            found = re.search(r"^model name\s*:\s*(.*)$", file.read(), re.MULTILINE)
            model = found[1] if found else model
    pages = "unknown"
    if os.path.exists("/sys/kernel/mm/transparent_hugepage/enabled"):
        with open("/sys/kernel/mm/transparent_hugepage/enabled", encoding="utf-8") as file:
            pages = re.search(r"\[(\w+)\]", file.read())[1]
    kernel = re.match(r"[\d.]*\d", platform.release())[0]
    time = lambda seconds: datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    first, last = time(min(times)), time(max(times))
    rows = [
        ["CPU", model],
        ["CPUs of this process", str(len(os.sched_getaffinity(0)))],
        ["kernel", f"{platform.system()} {kernel}, {platform.machine()}"],
        ["transparent huge pages", pages],
        ["C library", " ".join(platform.libc_ver())],
        ["date", f"{first:%Y-%m-%d}, from {first:%H:%M} to {last:%H:%M} UTC"],
    ]
    return table(["", ""], rows)


def write_page(sections):
    with open(PAGE, encoding="utf-8") as file:
        page = file.read()
    for name, text in sections.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            sys.exit(f"{PAGE}: no markers of {name}")
        head, rest = page.split(begin)
        page = head + begin + "\n" + text + "\n" + end + rest.split(end)[1]
    with open(PAGE, "w", encoding="utf-8") as file:
        file.write(page)


# ---------------------------------------------------------------- pictures

PLOT_WIDTH, PLOT_HEIGHT = 190, 300
LEFT, TOP, BOTTOM, LABELS = 58, 58, 46, 168
LABEL_GAP = 15


def style():
    def rules(ground, text, grid, colour):
        rules = [f"rect.ground{{fill:{ground}}}", f"text{{fill:{text}}}", f"line.grid{{stroke:{grid}}}"]
        for subject, look in SUBJECTS.items():
            rules.append(f".{subject}{{stroke:{look[colour]}}}text.{subject},circle.{subject}{{fill:{look[colour]}}}")
        return "".join(rules)

    dashes = ",".join(f"path.{subject}" for subject, look in SUBJECTS.items() if look[3])
    return ("<style>text{font:13px system-ui,sans-serif;stroke:none!important}text.title{font-weight:600}"
            "path{fill:none;stroke-width:2}line{stroke-width:1}"
            f"{dashes}{{stroke-dasharray:5 4}}"
            + rules("#fff", "#333", "#ddd", 1)
            + "@media(prefers-color-scheme:dark){" + rules("#0d1117", "#d0d0d0", "#30363d", 2) + "}</style>")


def spread(wanted, low, high):
    """Places for labels near where they are wanted, a gap apart, between two bounds."""
    order = sorted(range(len(wanted)), key=lambda nth: wanted[nth])
    places = list(wanted)
    for _ in range(200):
        moved = False
        for above, below in zip(order, order[1:]):
            lack = LABEL_GAP - (places[below] - places[above])
            if lack > 0.01:
                places[above] -= lack / 2
                places[below] += lack / 2
                moved = True
        for nth in order:
            inside = min(max(places[nth], low), high)
            moved |= inside != places[nth]
            places[nth] = inside
        if not moved:
            break
    return places


def panel(left, title, lines, xs, x_labels, x_title, bounds):
    """One pair of axes; `lines` are the points (index of x, nanoseconds) of each subject."""
    low, high = bounds
    bottom = TOP + PLOT_HEIGHT
    x_scale = [math.log(x) for x in xs]
    x_at = lambda nth: left + PLOT_WIDTH * (x_scale[nth] - x_scale[0]) / (x_scale[-1] - x_scale[0])
    y_at = lambda value: bottom - PLOT_HEIGHT * math.log(value / low) / math.log(high / low)
    out = [f'<text class="title" x="{left}" y="{TOP - 14}">{escape(title)}</text>']
    decade = 10 ** math.floor(math.log10(low))
    while decade <= high * 1.001:
        for factor in [1, 2, 5]:
            value = decade * factor
            if low * 0.999 <= value <= high * 1.001:
                y = y_at(value)
                out.append(f'<line class="grid" x1="{left}" x2="{left + PLOT_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
                if left == LEFT:
                    out.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick_text(value)}</text>')
        decade *= 10
    last = None
    for nth, label in enumerate(x_labels):
        x = x_at(nth)
        if last is None or x - last > 24:
            out.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{label}</text>')
            last = x
    middle = left + PLOT_WIDTH / 2
    out.append(f'<text x="{middle}" y="{bottom + 38}" text-anchor="middle">{escape(x_title)}</text>')
    drawn = [(subject, points) for subject, points in lines if points]
    is_alone = lambda points: len(points) == 1
    labelled = [nth for nth, (_, points) in enumerate(drawn) if not is_alone(points)]
    places = dict(zip(labelled, spread([y_at(drawn[nth][1][-1][1]) for nth in labelled], TOP, bottom)))
    for nth, (subject, points) in enumerate(drawn):
        spots = [(x_at(nth), y_at(value)) for nth, value in points]
        out += [f'<circle class="{subject}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in spots]
        x, y = spots[-1]
        if is_alone(points):
            out.append(f'<text class="{subject}" x="{x + 6:.1f}" y="{y - 6:.1f}">{SUBJECTS[subject][0]}</text>')
            continue
        path = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
        out.append(f'<path class="{subject}" d="{path}"/>')
        label, place = left + PLOT_WIDTH + 14, places[nth]
        out.append(f'<line class="{subject}" x1="{x + 4:.1f}" y1="{y:.1f}" x2="{label - 3}" y2="{place:.1f}" opacity=".5"/>')
        out.append(f'<text class="{subject}" x="{label}" y="{place + 4:.1f}">{SUBJECTS[subject][0]}</text>')
    return "".join(out)


def tick_text(nanoseconds):
    if nanoseconds >= 1000:
        return f"{nanoseconds / 1000:g} µs"
    return f"{nanoseconds:g} ns"


def picture(name, title, panels, xs, x_labels, x_title):
    """Panels side by side with the same axes; `panels` are (title, lines)."""
    values = [value for _, lines in panels for _, points in lines for _, value in points]
    if not values:
        return
    round_to = [factor * 10 ** power for power in range(-2, 9) for factor in [1, 2, 5]]
    bounds = (max(value for value in round_to if value <= min(values)),
              min(value for value in round_to if value >= max(values)))
    step = PLOT_WIDTH + LABELS
    height = TOP + PLOT_HEIGHT + BOTTOM
    width = LEFT + step * len(panels)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
           f'height="{height}" role="img"><title>{escape(title)}</title>', style(),
           f'<rect class="ground" width="{width}" height="{height}"/>',
           f'<text class="title" x="8" y="20">{escape(title)}</text>']
    for nth, (panel_title, lines) in enumerate(panels):
        out.append(panel(LEFT + step * nth, panel_title, lines, xs, x_labels, x_title, bounds))
    out.append("</svg>\n")
    with open(os.path.join(HERE, "results", name + ".svg"), "w", encoding="utf-8") as file:
        file.write("".join(out))


def pictures(medians):
    os.makedirs(os.path.join(HERE, "results"), exist_ok=True)

    def lines(subjects, name, xs):
        def points(subject):
            times = [medians.get(name.format(subject=subject, x=x)) for x in xs]
            return [(nth, time) for nth, time in enumerate(times) if time is not None]
        return [(subject, points(subject)) for subject in subjects]

    subjects = WAYS + ["padded_array", "malloc", "free_list"]
    counts = ["1", "10", "100", "1k", "10k", "100k"]
    for group, what in [("batch", "so many objects are allocated, then freed"),
                        ("replace", "one of so many live objects is freed, another allocated")]:
        panels = [(f"{cpus} CPUs", lines(subjects, f"{group}/{cpus}_cpus/{{subject}}/{{x}}", COUNTS))
                  for cpus in CPUS]
        picture(group, f"One allocation and free of 8 bytes: {what}", panels, COUNTS, counts, "live objects")

    panels = [
        ("one object, again and again",
         lines(WAYS + ["padded_array", "malloc", "free_list_cleared", "bare_clearing"],
               "pair/{x}_cpus/{subject}/8", CPUS)),
        ("batches of 1 000", lines(subjects, "batch/{x}_cpus/{subject}/1000", CPUS)),
        ("one of 100 000 is replaced", lines(subjects, "replace/{x}_cpus/{subject}/100000", CPUS)),
    ]
    picture("cpus", "One allocation and free of 8 bytes: CPUs of the machine", panels, CPUS,
            [str(cpus) for cpus in CPUS], "CPUs")

    panels = [(f"{cpus} CPUs, {'pair' if shape == 'pair' else 'batches of 1 000'}",
               lines(subjects, f"threads/{cpus}_cpus/{{subject}}/{shape}/{{x}}", [1, 2]))
              for cpus, shape in [(2, "pair"), (2, "batch_1000"), (256, "batch_1000")]]
    picture("threads", "One allocation and free of 8 bytes: threads that do so", panels, [1, 2],
            ["1", "2"], "pinned threads")

    panels = [(f"{cpus} CPUs", lines(WAYS + ["padded_array"], f"pair/{cpus}_cpus/{{subject}}/{{x}}", SIZES))
              for cpus in CPUS]
    picture("sizes", "One object is allocated and freed, again and again: its size", panels, SIZES,
            [str(size) for size in SIZES], "bytes")


def main():
    medians, times = estimates()
    write_page({"machine": machine(times), **tables(medians)})
    pictures(medians)


if __name__ == "__main__":
    main()
