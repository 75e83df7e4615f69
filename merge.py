"""Merges adapters into one model and scores every member:  python merge.py tasks=[age_class,galaxy] merge=cat

``sweep=pairs`` merges all pairs in one process; ``-m`` runs a job for each method, rank or set. Rows lie in
``outputs/runs/merge-*/result.json``, merged models in ``outputs/models``. Exit codes: 0 done, 1 something failed, 2 the
command was wrong.
"""

from typing import Any

from launch import logs
from launch.app import main
from launch.bundles import find_bundles, merged_contents
from launch.merge_schema import MergeConfig
from launch.publishing import look_for_models
from launch.runs import Run


def job(config: MergeConfig, run: Run) -> dict[str, Any]:
    """Looks for the adapters before the backbone is built."""
    from merging.run import merge

    logs.take_over("lightning", "huggingface_hub")
    bundles = find_bundles(config)
    if config.advise:
        from merging.advisor import advise

        return advise(config, run, bundles)
    return merge(config, run, bundles)


if __name__ == "__main__":
    main("merge", MergeConfig, job, inputs=merged_contents, skipped=look_for_models)
