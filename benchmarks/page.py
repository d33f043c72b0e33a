"""The results as a page in Markdown: for each measure a table, and a bar chart that Mermaid draws."""

import statistics
from collections.abc import Mapping, Sequence

#: What a measure found: each contender's and each figure's values, one of each round.
Found = Mapping[str, Mapping[str, Sequence[float]]]
#: Of each measure.
Results = Mapping[str, Found]

#: Cores of the machine at work, the broker's among them: with all of them busy, no worker could be faster. It is told
#: and not compared.
BUSY = "cores busy"
OURS = "ours"
#: Clients that retry, schedule, validate and trace nothing: a limit, and no peers.
RAW = "raw_"


def page_of(results: Results, machine: str, packages: Sequence[str]) -> str:
    parts = [f"{machine}. {', '.join(packages)}."]
    parts += [f"### {measure}\n\n{table_of(found)}\n\n{chart_of(measure, found)}" for measure, found in results.items()]
    return "\n\n".join(parts) + "\n"


def table_of(found: Found) -> str:
    head, *rows = rows_of(found)
    line = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, line, *rows))


def rows_of(found: Found) -> list[list[str]]:
    """The figures' names; each contender with its own; what ours are beside the others'."""
    figures = list(next(iter(found.values())))
    contenders = [[name, *(spread(values[each]) for each in figures)] for name, values in found.items()]
    return [["", *figures], *contenders, *([title, *row] for title, row in ratios(found).items())]


def chart_of(measure: str, found: Found) -> str:
    """Of the first figure, which is the one that the measure is about."""
    figure = next(iter(next(iter(found.values()))))
    names = ", ".join(f'"{name}"' for name in found)
    medians = [round(statistics.median(values[figure]), 3) for values in found.values()]
    wording = "more" if is_better_when_more(figure) else "less"
    return f"""\
```mermaid
xychart-beta horizontal
    title "{measure}: {figure}, {wording} is better"
    x-axis [{names}]
    y-axis 0 --> {max(medians)}
    bar [{", ".join(map(str, medians))}]
```"""


def ratios(found: Found) -> Mapping[str, list[str]]:
    """How many times better ours is than the best peer, and than the best raw client; below 1 it is worse."""
    raw = [name for name in found if name.startswith(RAW)]
    peers = [name for name in found if name not in (OURS, *raw)]
    told: dict[str, list[str]] = {}
    for title, others in (("beside the best peer", peers), ("beside the best raw client", raw)):
        if OURS in found and others:
            told[title] = [_ratio(found, figure, others) for figure in found[OURS]]
    return told


def _ratio(found: Found, figure: str, others: Sequence[str]) -> str:
    if figure == BUSY:
        return ""
    ours = statistics.median(found[OURS][figure])
    theirs = [statistics.median(found[name][figure]) for name in others]
    better, worse = (ours, max(theirs)) if is_better_when_more(figure) else (min(theirs), ours)
    return f"{better / worse:.1f}×" if worse else ""


def is_better_when_more(figure: str) -> bool:
    return figure.endswith("/s")


def spread(values: Sequence[float]) -> str:
    """The median, and from the lowest to the highest where there are several."""
    if len(values) == 1:
        return shown(values[0])
    return f"{shown(statistics.median(values))} [{shown(min(values))}-{shown(max(values))}]"


def shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
