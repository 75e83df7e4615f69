"""What ``serve.py`` may be told: a model, an address, and how much it takes in."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from launch import checks
from launch.merge_schema import MergedBackbone, Tasks
from launch.schema import Check, Device, Logger, Paths, Strict, Sweep, Text


class ServeConfig(Strict):
    """Config of ``serve.py``."""

    model: Text = Field(description="the folder of a merged model or of an adapter")
    tasks: Tasks | None = Field(description="a list of tasks [a,b], or null (all)")
    faces: Literal["none", "detect"] = Field(description="none or detect: what the page begins with")
    host: Text = Field(description="an address; 127.0.0.1 is this machine alone")
    port: int = Field(ge=0, le=65535, description="a port, 0 (any free one) to 65535")
    max_megabytes: float = Field(gt=0, le=1000, description="megabytes of a picture's file, above 0, at most 1000")
    max_pixels: int = Field(ge=1, description="a whole number of pixels, 1 or more")
    backbone: MergedBackbone
    device: Device
    logger: Logger = Field(default_factory=Logger, description="logger=csv")
    sweep: Sweep
    paths: Paths

    checks: ClassVar[tuple[Check, ...]] = ((("backbone.weights",), checks.weights),)

    @property
    def title(self) -> str:
        """The readable part of the job's name."""
        return Path(self.model).name
