"""A run that nothing has measured, for tests of what is made from runs."""

from __future__ import annotations

from benchmarks.claims import Claim, Kind
from benchmarks.run import Record, Round, Run
from benchmarks.workloads.base import Figure


def made_run() -> Run:
    """Two systems and two floors, two rounds.

    A claim that is met, one missed, one without figures, one that nothing can meet.
    """
    record = Record(
        name="memory",
        title="Memory",
        sizes={"rounds": 2},
        figures=[
            Figure("pss_1", "PSS at 1", "MB", "pss", 1),
            Figure("pss_10", "PSS at 10", "MB", "pss", 10),
            Figure("wall", "wall time", "ms"),
            Figure("life", "a life", "ms"),
        ],
        claims=[
            Claim("little memory", "pss_10", 30, Kind.VALUE),
            Claim("less memory", "pss_10", 0.1, Kind.RATIO),
            Claim("little time", "wall", 1, Kind.ABOVE),
            Claim("no time", "life", 1, Kind.ABOVE, least=(("null_shim", 1), ("bare", 1))),
        ],
        rounds=[
            Round("dense_host", 0, {"pss_1": 10.0, "pss_10": 20.0, "life": 8.0}),
            Round("runc_v2", 0, {"pss_1": 4.0, "pss_10": 40.0}),
            Round("bare", 0, {"wall": 5.0, "life": 5.0}),
            Round("null_shim", 0, {"life": 2.0}),
            Round("dense_host", 1, {"pss_1": 12.0, "pss_10": 22.0}),
            Round("runc_v2", 1, {}, "OSError: no | more"),
        ],
    )
    machine = {"date": "2001-02-03", "processors": "2 × Z80", "memory": "1 GiB", "kernel": "6.1"}
    systems = {"bare": "runc alone", "dense_host": "denseshim, host", "runc_v2": "runc's"}
    systems["null_shim"] = "nothing's"
    return Run(machine, systems, quick=False, seconds=90.0, records=[record])
