"""Gets data ready:  python prepare.py data=galaxy10

Finds or fetches a dataset, checks, unpacks and caches it, counts it and draws ``outputs/previews/<set>.png``.
``data=all`` takes all five datasets, ``data=sample`` draws stand-ins for them. What is done already is not done again.
Exit codes: 0 done, 1 something failed, 2 the command was wrong.
"""

from typing import Any

from launch.app import main
from launch.prepare_schema import PrepareConfig
from launch.runs import Run


def job(config: PrepareConfig, run: Run) -> dict[str, Any]:
    """Imports pandas and the like only now: a fault in the command should not wait for them."""
    from datamodules.preparing import prepare

    return prepare(config, run)


if __name__ == "__main__":
    main("prepare", PrepareConfig, job, keeps_run=False)
