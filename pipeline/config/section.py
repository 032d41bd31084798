"""What all sections of a configuration have in common; no I/O."""

from typing import Any, get_origin

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """Frozen, and no key but its own; one without a line is as good as none."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _without_empty_sections(cls, data: Any) -> Any:
        """Without sections of which every line is a comment: YAML has null for them."""
        if not isinstance(data, dict):
            return data
        fields = cls.model_fields.items()
        sections = {name for name, field in fields if _has_keys(field.annotation)}
        return {k: v for k, v in data.items() if v is not None or k not in sections}


def _has_keys(annotation: Any) -> bool:
    """Whether a setting is a section or a mapping, and may not be null."""
    is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return is_section or get_origin(annotation) is dict
