from amqpjobs.health.merging import merged

FIRST = """\
# HELP jobs_total Jobs.
# TYPE jobs_total counter
jobs_total{kind="a",text="} # {"} 1.0
jobs_total{} 4.0
# HELP active Running.
# TYPE active gauge
active 2.0
"""
SECOND = """\
# HELP jobs_total Jobs.
# TYPE jobs_total counter
jobs_total{kind="a",} 7.0 1700000000
# TYPE only_here gauge
only_here 1.0
"""


def test_each_family_is_told_once_and_each_sample_has_the_number_of_its_process() -> None:
    assert merged({1: FIRST, 2: SECOND}) == (
        "# HELP jobs_total Jobs.\n"
        "# TYPE jobs_total counter\n"
        'jobs_total{kind="a",text="} # {",worker="1"} 1.0\n'
        'jobs_total{worker="1"} 4.0\n'
        'jobs_total{kind="a",worker="2"} 7.0 1700000000\n'
        "# HELP active Running.\n"
        "# TYPE active gauge\n"
        'active{worker="1"} 2.0\n'
        "# TYPE only_here gauge\n"
        'only_here{worker="2"} 1.0\n'
    )


def test_no_metrics_are_an_empty_text() -> None:
    assert merged({}) == merged({1: ""}) == ""
