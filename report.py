"""Makes tables, figures and a page of everything measured:  python report.py

What comes out lies in ``outputs/reports/<name>/``. ``watch=SWEEPNAME`` shows a running sweep instead.
Exit codes: 0 done, 1 something failed, 2 the command was wrong.
"""

from typing import Any

from launch.app import main
from launch.report_schema import ReportConfig
from launch.runs import Run


def job(config: ReportConfig, run: Run) -> dict[str, Any]:
    """Imports pandas and matplotlib only now: a fault in the command should not wait for them."""
    from reporting.making import report

    return report(config)


if __name__ == "__main__":
    main("report", ReportConfig, job, keeps_run=False)
