"""What ``report.py`` may be told."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from launch.schema import Check, Logger, Name, Paths, Strict, Sweep, Text

Format = Literal["html", "csv", "parquet", "markdown", "png", "svg"]


def _wandb(wanted: bool, logger: dict[str, Any] | None) -> Iterator[str]:
    if wanted and not (logger or {}).get("wandb"):
        yield "wandb=true: no project is named; use logger=wandb, e.g. logger.wandb.project=lora-alloy."


def _one_thing(wanted: bool, watch: str | None) -> Iterator[str]:
    if wanted and watch is not None:
        yield f"wandb=true and watch={watch}: give one of them; watching a sweep builds no report."


class ReportConfig(Strict):
    """Config of ``report.py``."""

    name: Name = Field(description="a name of a-z, 0-9 and _")
    folders: Annotated[list[Text], Field(min_length=1)] = Field(description="a list of folders [a,b]")
    formats: Annotated[list[Format], Field(min_length=1)] = Field(
        description="a list of html, csv, parquet, markdown, png, svg"
    )
    watch: Text | None = Field(description="the name of a sweep, or null (make a report)")
    refresh: float = Field(gt=0, le=3600, description="seconds, above 0 and at most 3600")
    wandb: bool = Field(description="true or false")
    logger: Logger = Field(default_factory=Logger, description="logger=wandb or csv")
    sweep: Sweep
    paths: Paths

    checks: ClassVar[tuple[Check, ...]] = (
        (("wandb", "logger"), _wandb),
        (("wandb", "watch"), _one_thing),
    )

    @property
    def title(self) -> str:
        """The report's name."""
        return self.name
