"""Asks a model about pictures:  python predict.py model=outputs/models/NAME images=DIR

``images`` is a picture, a folder, a glob or a CSV. Answers go to a CSV, JSON lines or parquet file as they come; a
picture that cannot be read is named there with the reason. Each picture is cropped as the tasks were trained: tasks
that see it in the same way (``fit``, whole or face) share one backbone pass, each further way costs a pass more unless
it cuts the same square. Of what was there only earlier answers and drawings are replaced.
Exit codes: 0 done, 1 something failed, 2 the command was wrong.
"""

from typing import Any

from launch import logs
from launch.app import main
from launch.bundles import require_model
from launch.predict_schema import PredictConfig
from launch.runs import Run


def job(config: PredictConfig, run: Run) -> dict[str, Any]:
    """Imports torch and the like only now: a fault in the command should not wait for them."""
    require_model(config.model)
    from merging.answer_places import check_places
    from merging.picture_list import check_images

    check_images(config.image_list, config.column)
    check_places(config.image_list, config.output_file, config.pictures)
    from merging.predicting import predict

    logs.take_over("lightning", "huggingface_hub")
    return predict(config)


if __name__ == "__main__":
    main("predict", PredictConfig, job, keeps_run=False)
