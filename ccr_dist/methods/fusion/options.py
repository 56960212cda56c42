"""Options of `fusion`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SerializeAsAny, field_validator

from ccr_dist.config import ENGLISH, DataConfig, MethodOptions
from ccr_dist.errors import ConfigError
from ccr_dist.methods.clip.options import ClipOptions
from ccr_dist.methods.registry import register_options

Weight = Annotated[float, Field(ge=0, le=1)]


@register_options("fusion")
class FusionOptions(MethodOptions):
    name: Literal["fusion"]
    of: SerializeAsAny[MethodOptions] = Field(
        ClipOptions(name="clip"),
        description="`name` and options of the method that was trained, as its run has them; default: `clip`",
    )
    weights: tuple[Weight, ...] = Field(
        tuple(round(0.1 * tenths, 1) for tenths in range(11)),
        min_length=1,
        description="candidate weights of the translation, the rest is the query's own; validation chooses",
    )

    @field_validator("of")
    @classmethod
    def _asks_in_the_language(cls, of: MethodOptions) -> MethodOptions:
        if of.name in ("fusion", "translate_test"):
            raise ValueError(
                f"method {of.name} asks translations already; name the method whose queries they are averaged with"
            )
        return of

    def learner(self) -> MethodOptions:
        return self.of

    def gallery(self) -> frozenset[str]:
        return self.of.gallery()

    def query_columns(self, data: DataConfig) -> dict[str, str]:
        return self.of.query_columns(data)

    def companions(self, data: DataConfig) -> dict[str, str]:
        """The translated queries. ConfigError naming a language that has none."""
        foreign = [lang for lang in self.query_columns(data) if lang != ENGLISH]
        for lang in foreign:
            if lang not in data.translated_queries:
                raise ConfigError(
                    f"data.translated_queries: no column for '{lang}', but method fusion asks each query in English,"
                    f" too. Make one from '{data.queries[lang]}' with `ccr-dist translate` on the validation and test"
                    " datasets and name it there, or leave the language out of data.queries."
                )
        return {lang: data.translated_queries[lang] for lang in foreign}
