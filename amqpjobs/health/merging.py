"""The metrics of several processes as one text for Prometheus, each sample with the number of its process.

A family may be told once only in a text. So families are put together, and their samples stay apart by a label.
"""

from collections.abc import Mapping

#: The label, named as in log lines.
LABEL = "worker"


def merged(texts: Mapping[int, str]) -> str:
    """One text of those of the processes with these numbers."""
    comments, samples = dict[str, list[str]](), dict[str, list[str]]()
    for number, text in texts.items():
        family = ""
        for line in text.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                family = line.split(" ", 3)[2]
                known = comments.setdefault(family, [])
                if not any(each[:7] == line[:7] for each in known):
                    known.append(line)
            elif line and not line.startswith("#"):
                samples.setdefault(family, []).append(_labelled(line, number))
    families = dict.fromkeys([*comments, *samples])
    lines = [line for each in families for line in (*comments.get(each, ()), *samples.get(each, ()))]
    return "".join(f"{line}\n" for line in lines)


def _labelled(sample: str, number: int) -> str:
    label = f'{LABEL}="{number}"'
    labels, brace, rest = sample.rpartition("}")
    if not brace:
        name, _, value = sample.partition(" ")
        return f"{name}{{{label}}} {value}"
    return f"{labels}{'' if labels.endswith(('{', ',')) else ','}{label}}}{rest}"
