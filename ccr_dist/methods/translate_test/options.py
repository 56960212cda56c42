"""Options of `translate_test`."""

from __future__ import annotations

from typing import Literal

from ccr_dist.config import ENGLISH, DataConfig, MethodOptions
from ccr_dist.errors import ConfigError
from ccr_dist.methods.registry import register_options


@register_options("translate_test")
class TranslateTestOptions(MethodOptions):
    name: Literal["translate_test"]

    def query_columns(self, data: DataConfig) -> dict[str, str]:
        """The translated column of each language, and English as it is. ConfigError naming a language that has none."""
        columns = {}
        for lang, column in data.queries.items():
            if lang == ENGLISH:
                columns[lang] = column
            elif lang in data.translated_queries:
                columns[lang] = data.translated_queries[lang]
            else:
                raise ConfigError(
                    f"data.translated_queries: no column for '{lang}', but method translate_test asks its queries in"
                    f" English. Make one from '{column}' with `ccr-dist translate` on the validation and test datasets,"
                    " and name it there."
                )
        return columns
