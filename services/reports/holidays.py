"""Days on which nobody reads reports: the holidays of all German states, by computing and not by a list."""

from datetime import date, timedelta

FIXED = frozenset({(1, 1), (5, 1), (10, 3), (12, 25), (12, 26)})
#: Good Friday, Easter Monday, Ascension Day and Whit Monday, in days after Easter.
MOVABLE = frozenset({-2, 1, 39, 50})


def is_holiday(day: date) -> bool:
    return (day.month, day.day) in FIXED or (day - easter(day.year)).days in MOVABLE


def easter(year: int) -> date:
    """Easter Sunday, by the method that Nature printed in 1876."""
    century, of_century = divmod(year, 100)
    golden = year % 19
    correction = (century - (century + 8) // 25 + 1) // 3
    moon = (19 * golden + century - century // 4 - correction + 15) % 30
    weekday = (32 + 2 * (century % 4) + 2 * (of_century // 4) - moon - of_century % 4) % 7
    late = (golden + 11 * moon + 22 * weekday) // 451
    return date(year, 3, 22) + timedelta(days=moon + weekday - 7 * late)
