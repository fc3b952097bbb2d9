"""What a student is: where it starts, which layers it keeps, how wide its heads are. No torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

PAPER_HEADS = {"fc2": 1024, "fc3": 512, "fc4": 256}

Width = Annotated[int, Field(gt=0)]


class StudentError(Exception):
    """An expected failure of a student: one line that says what, where, and what to do next."""


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
    max_tokens: Annotated[int, Field(gt=0)] = Field(512, description="longest input")
    prompt: str = Field("", description="text put before every text")

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
