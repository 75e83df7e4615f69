"""What ``predict.py`` may be told: a model, pictures, and where the answers go."""

import glob
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from launch import checks
from launch.bundles import title_of
from launch.labels import digest
from launch.merge_schema import MergedBackbone, Tasks
from launch.schema import Check, Device, Logger, Paths, Strict, Sweep, Text

OUTPUTS = (".csv", ".jsonl", ".parquet")


def _output(output: str | None) -> Iterator[str]:
    if output is not None and Path(output).suffix.lower() not in OUTPUTS:
        yield f"output={output}: the name must end in {', '.join(OUTPUTS)}."


class PredictConfig(Strict):
    """Config of ``predict.py``."""

    model: Text = Field(description="the folder of a merged model or of an adapter")
    images: Text | Annotated[list[Text], Field(min_length=1)] = Field(
        description="a picture, a folder, a glob, a CSV, or a list [a,b]"
    )
    column: Text = Field(description="the column of a CSV that holds the files")
    tasks: Tasks | None = Field(description="a list of tasks [a,b], or null (all)")
    output: Text | None = Field(
        description="a file .csv, .jsonl or .parquet, or null (made from the model's and the images' names)"
    )
    pictures: Text | None = Field(description="a folder for pictures with the answers drawn, or null")
    faces: Literal["none", "detect"] = Field(description="none or detect")
    batch_size: int = Field(ge=1, description="a whole number, 1 or more")
    max_pixels: int = Field(ge=1, description="a whole number of pixels, 1 or more")
    backbone: MergedBackbone
    precision: Literal["auto", "32-true", "bf16-mixed"] = Field(description="auto, 32-true or bf16-mixed")
    device: Device
    logger: Logger = Field(default_factory=Logger, description="logger=csv")
    sweep: Sweep
    paths: Paths

    # keys that name what one job writes: the jobs of a sweep must not share it
    places: ClassVar[tuple[str, ...]] = ("output", "pictures")
    checks: ClassVar[tuple[Check, ...]] = ((("output",), _output), (("backbone.weights",), checks.weights))

    @property
    def title(self) -> str:
        """The readable part of the job's name."""
        return title_of(self.model)

    @property
    def image_list(self) -> list[str]:
        """``images`` as a list."""
        return [self.images] if isinstance(self.images, str) else self.images

    @property
    def output_file(self) -> str:
        """Where the answers go; unless it is named, each model's to each choice of images have a file of their own."""
        return self.output or f"{self.paths.outputs}/predictions/{title_of(self.model)}-{self._images_title}.csv"

    @property
    def _images_title(self) -> str:
        """The name of a folder or file, where it is one alone, and a digest: others elsewhere may have that name."""
        paths = [Path(text).expanduser().absolute() for text in self.image_list]
        mark = digest(json.dumps([self.column, *map(str, paths)]))
        if len(paths) > 1 or (glob.has_magic(self.image_list[0]) and not paths[0].exists()):
            return mark
        name = paths[0].name if paths[0].is_dir() else paths[0].stem
        return "-".join(filter(None, [re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[:60], mark]))
