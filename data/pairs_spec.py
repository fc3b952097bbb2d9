"""Where image–caption pairs lie, as a recipe says it. Reads nothing."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class PairsSpec(BaseModel):
    """Where image–caption pairs come from: exactly one of `path`, `dataset` and `generator`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str | None = Field(
        None,
        description="a file, a folder or a glob: JSON lines or CSV with captions and names of "
        "image files; Parquet with the images in it; WebDataset .tar files (key.jpg with key.txt "
        "or key.json)",
    )
    dataset: str | None = Field(
        None,
        description="a data set of the Hugging Face hub, or a local folder if it begins with "
        "`.` or `/`",
    )
    generator: Literal["drawings"] | None = Field(
        None, description="pairs made on the spot: pictures that are drawn, and what they show"
    )
    count: int = Field(7200, gt=0, description="how many drawings")
    subset: str | None = Field(None, description="configuration of the data set")
    split: str = Field("train", min_length=1, description="split of the data set")
    revision: str | None = Field(None, description="commit or tag of the data set")
    images: str | None = Field(
        None,
        description="the folder that names of image files start from; without it the folder of "
        "the file that names them. No name leads out of it",
    )
    image_field: str = Field("image", description="the column with the image, or its file's name")
    caption_field: str = Field(
        "caption",
        description="the column with the caption; `json.conversations` is `conversations` within "
        "`json`. Of a conversation the first answer counts (BAAI/Infinity-MM)",
    )
    held_out: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="fraction of the captions whose pairs are kept out of training",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="chooses which captions are held out")
    bad_rows: Literal["refuse", "skip"] = Field(
        "refuse", description="what to do with a row without a caption or the name of an image"
    )
    most_broken: int = Field(
        100, ge=0, description="images that cannot be used, of a process; one more stops the run"
    )
    workers: int = Field(4, gt=0, description="threads that decode images")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if [self.path, self.dataset, self.generator].count(None) != 2:
            raise ValueError("images need exactly one of path, dataset and generator")
        # Compared with the defaults, not with what was set: a spec that was dumped loads again.
        if self.dataset is None and (self.subset, self.split, self.revision) != (
            None, "train", None,
        ):  # fmt: skip
            raise ValueError("subset, split and revision go with dataset")
        return self
