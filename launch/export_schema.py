"""What ``export.py`` may be told: a model, a format, the pictures that it is checked on, or a place on the Hub."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from launch import checks
from launch.bundles import title_of
from launch.merge_schema import MergedBackbone
from launch.schema import Check, Logger, Name, Paths, Strict, Sweep, Text


def _int8(int8: bool, form: str) -> Iterator[str]:
    if int8 and form != "onnx":
        yield f"int8=true: only for format=onnx, not for format={form}."


def _hub(hub: str | None, form: str) -> Iterator[str]:
    if form == "hub" and hub is None:
        yield "hub is missing: where to? Give hub=user/name."
    if form != "hub" and hub is not None:
        yield f"hub={hub}: only with format=hub, which uploads the model as it is; not with format={form}."


class ExportConfig(Strict):
    """Config of ``export.py``."""

    model: Text = Field(description="the folder of a merged model or of an adapter")
    format: Literal["onnx", "torch_export", "timm", "hub"] = Field(description="onnx, torch_export, timm or hub")
    hub: Annotated[Text, Field(pattern=r"^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$")] | None = Field(
        description="user/name on the Hugging Face Hub, or null"
    )
    private: bool = Field(description="true or false")
    int8: bool = Field(description="true or false")
    output: Text | None = Field(description="a folder, or null (made from the model's name)")
    images: Text | Annotated[list[Text], Field(min_length=1)] | None = Field(
        description="pictures to check on: a folder, a glob, ...; or null (drawn noise)"
    )
    count: int = Field(ge=1, le=10_000, description="a whole number of pictures, 1 to 10000")
    score_images: Annotated[int, Field(ge=2)] | None = Field(
        description="a whole number of test pictures, 2 or more, or null (none)"
    )
    roots: dict[Name, Text] = Field(description="a mapping {task: folder of its data}")
    tolerance: float = Field(gt=0, lt=1, description="a number between 0 and 1")
    backbone: MergedBackbone
    logger: Logger = Field(default_factory=Logger, description="logger=csv")
    sweep: Sweep
    paths: Paths

    # keys that name what one job writes: the jobs of a sweep must not share it
    places: ClassVar[tuple[str, ...]] = ("output", "hub")
    checks: ClassVar[tuple[Check, ...]] = (
        (("int8", "format"), _int8),
        (("hub", "format"), _hub),
        (("backbone.weights",), checks.weights),
    )

    @property
    def title(self) -> str:
        """The readable part of the job's name."""
        return f"{title_of(self.model)}-{self.format}"

    @property
    def folder(self) -> str:
        """Where the exported model goes."""
        name = f"{self.title}{'-int8' if self.int8 else ''}"
        return self.output or f"{self.paths.outputs}/exports/{name}"

    @property
    def image_list(self) -> list[str]:
        """``images`` as a list; empty where noise is drawn."""
        return [] if self.images is None else [self.images] if isinstance(self.images, str) else self.images
