"""A web page for one model, on this machine:  python serve.py model=outputs/models/NAME

Open the address that it prints, choose a picture, read every task's answer. Programs post to ``/answer`` and get JSON.
Made for demonstrations on localhost: there is no login. Ends with Ctrl-C.
Exit codes: 0 done, 1 something failed, 2 the command was wrong, 130 Ctrl-C.
"""

from typing import Any

from launch import logs
from launch.app import main
from launch.bundles import require_model
from launch.runs import Run
from launch.serve_schema import ServeConfig


def job(config: ServeConfig, run: Run) -> dict[str, Any]:
    """Imports torch and the web framework only now: a fault in the command should not wait for them."""
    require_model(config.model)
    from merging.serving import serve

    logs.take_over("lightning", "huggingface_hub")
    return serve(config)


if __name__ == "__main__":
    main("serve", ServeConfig, job, keeps_run=False)
