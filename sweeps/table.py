"""Tables in plain text."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first to the left, the others to the right.

    >>> print(table(["layer", "n"], [["conv1", "3"], ["fc", "1,024"]]))
    layer      n
    -----  -----
    conv1      3
    fc     1,024
    """
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def percent(fraction: float, se: float | None = None) -> str:
    """A fraction as a percentage, with its standard error if there is one.

    >>> percent(0.8388), percent(0.8388, 0.0052)
    ('83.88 %', '83.88 ± 0.52 %')
    """
    return f"{100 * fraction:.2f} %" if se is None else f"{100 * fraction:.2f} ± {100 * se:.2f} %"


def points(change: float, se: float) -> str:
    """A difference of two fractions in percentage points, with its standard error.

    >>> points(0.0106, 0.0041), points(-0.002, 0.003)
    ('+1.06 ± 0.41 points', '-0.20 ± 0.30 points')
    """
    return f"{100 * change:+.2f} ± {100 * se:.2f} points"


def count(number: int) -> str:
    """An integer with thousands apart.

    >>> count(26793994)
    '26,793,994'
    """
    return f"{number:,}"


def short(size_bytes: int, accuracy: float) -> str:
    """Both in as few letters as MLflow's list of runs has room for.

    >>> short(110_342, 0.97771), short(2_457, 1.0)
    ('110 kB 97.8 %', '2.5 kB 100.0 %')
    """
    kilobytes = size_bytes / 1000
    return f"{kilobytes:,.{1 if kilobytes < 10 else 0}f} kB {100 * accuracy:.1f} %"


def trial_name(number: int) -> str:
    """As runs, pages and messages call a trial.

    >>> trial_name(7)
    'trial 007'
    """
    return f"trial {number:03d}"
