"""What a student is: where it starts, which layers it keeps, how wide its heads are. No torch."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

SPEC_FILE = "student.json"
"""In a student's folder: its spec and the widths of its heads."""

POOLED = "pooled"
"""As a head's name: the pooled state itself."""

INIT = "init"
"""As a vector's name: the pooled state of the untrained student."""

PAPER_HEADS = {"fc2": 1024, "fc3": 512, "fc4": 256}
PAPER_IMAGE_TOKENS = 300

Width = Annotated[int, Field(gt=0)]


class StudentError(Exception):
    """An expected failure of a student: one line that says what, where, and what to do next."""


class FreshVision(BaseModel):
    """A SigLIP of these sizes with random weights: to try things out, not to start from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    side: Annotated[int, Field(gt=0)] = Field(48, description="pixels a side")
    patch: Annotated[int, Field(gt=0)] = Field(8, description="pixels a side of a patch")
    width: Annotated[int, Field(gt=0)] = Field(128, description="of its states")
    layers: Annotated[int, Field(gt=0)] = Field(3, description="how many")
    heads: Annotated[int, Field(gt=0)] = Field(4, description="of its attention")

    @model_validator(mode="after")
    def _heads_of_equal_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads cannot share a width of {self.width} evenly")
        return self


class VisionSpec(BaseModel):
    """The image side of a student: a SigLIP vision model and how its states become tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    init: str | None = Field(
        None,
        description="the vision model it starts from: a local folder, `package:NAME` or a hub id "
        "of a SigLIP; without one the student's own `init`, which must then hold one",
    )
    revision: str | None = Field(None, description="hub commit or tag of `init`")
    fresh: FreshVision | None = Field(
        None, description="instead of `init`: a SigLIP with random weights"
    )
    image_tokens: Annotated[int, Field(gt=0)] = Field(
        PAPER_IMAGE_TOKENS, description="tokens that stand for one image in the text body"
    )
    projection: bool = Field(
        False,
        description="a linear layer on the image tokens, begun as the identity; stage 4 trains it "
        "where it names `pooler` (the paper has none)",
    )


class StudentSpec(BaseModel):
    """A student: text body → mean pooling → FC1 and the reduced heads (paper, section 2.2).

    FC1 is always as wide as the target; only the reduced heads' widths are chosen here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    init: str = Field(
        "NovaSearch/stella_en_1.5B_v5",
        description="the model it starts from: a local folder, `package:NAME` or a hub id",
    )
    revision: str | None = Field(None, description="hub commit or tag of `init`")
    layers: tuple[int, ...] | None = Field(
        None, description="indices of the layers to keep, in order; all of them by default"
    )
    reduced_heads: dict[str, Width] = Field(
        default_factory=lambda: dict(PAPER_HEADS), description="width of each reduced head"
    )
    max_tokens: Annotated[int, Field(gt=0)] = Field(
        512, description="longest input; what is longer is cut"
    )
    prompt: str = Field("", description="text put before every text, not before images")
    vision: VisionSpec | None = Field(None, description="the image side, where there is one")

    @property
    def text_side(self) -> StudentSpec:
        """The same student without its image side."""
        return self.model_copy(update={"vision": None})

    @field_validator("layers")
    @classmethod
    def _each_layer_once(cls, layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if layers is not None and len(set(layers)) < len(layers):
            raise ValueError(f"a layer can be kept once, found {list(layers)}")
        return layers

    @field_validator("reduced_heads")
    @classmethod
    def _reserve_fc1(cls, heads: dict[str, int]) -> dict[str, int]:
        wrong = [name for name in heads if name == "fc1" or not name.isidentifier()]
        if wrong:
            raise ValueError(
                f"a reduced head is named fc2, fc3, …, found {wrong[0]!r}; "
                "fc1 is as wide as the target and needs no width"
            )
        return heads
