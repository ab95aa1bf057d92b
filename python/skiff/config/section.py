"""What every section of a profile is made of."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0)]
LONGEST = 4096  # characters of one value: what a path may have


def matching(pattern: str, form: str) -> AfterValidator:
    """The whole text must match; `form` says to a person what is expected."""
    whole = re.compile(pattern)

    def check(text: str) -> str:
        if not whole.fullmatch(text):
            raise ValueError(f"should be {form}")
        return text

    return AfterValidator(check)


class Section(BaseModel):
    """Frozen, and strict about unknown keys: a typo is an error, not a default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        """No text holds control characters: paths and words are printed, and stand in scripts."""
        for text in value if isinstance(value, list | tuple) else (value,):
            if isinstance(text, str) and not text.isprintable():
                raise ValueError("holds a character that cannot be printed")
            if isinstance(text, str) and len(text) > LONGEST:
                raise ValueError(f"is longer than {LONGEST} characters")
        return value
