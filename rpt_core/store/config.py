"""One flat pydantic model per stage. A field is semantic (it changes the result, so it enters the identity) or runtime
(device, workers, micro-batch: it does not). Torch-free, so that forms and ``--help`` stay fast."""

import difflib
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rpt_core.store.errors import UserError


def semantic(default: Any, description: str, **bounds: Any) -> Any:
    """A field that changes the result. Bounds are pydantic's (``ge``, ``le``, ``max_length`` …); say the unit in the description."""
    return Field(default, description=description, json_schema_extra={"semantic": True}, **bounds)


def runtime(default: Any, description: str, **bounds: Any) -> Any:
    """A field that changes only how the work is done, never what comes out."""
    return Field(default, description=description, json_schema_extra={"semantic": False}, **bounds)


SHOWN = 100  # characters of the changed settings in the name of a run
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def as_form(schema: dict[str, Any]) -> None:
    """Make a JSON schema read well as Prefect's form, which shows a field's title and description and nothing else: the title is the
    setting's own name, as commands and sentences write it; bounds stand in the description; what changes no result comes last."""
    fields = schema.get("properties", {})
    for name, field in fields.items():
        said = [f"{sign} {field[key]:,}".removesuffix(".0") for key, sign in BOUNDS.items() if key in field]
        field["title"] = name
        field["description"] += (f" ({', '.join(said)})" if said else "") + ("" if field["semantic"] else " Does not change the result.")
    schema["properties"] = dict(sorted(fields.items(), key=lambda item: not item[1]["semantic"]))


class StageConfig(BaseModel):
    """Base of every stage's configuration. ``retired`` maps a key of an older release to what replaced it."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), json_schema_extra=as_form)

    @classmethod
    def retired(cls) -> dict[str, str]:
        return {}

    @classmethod
    def build(cls, section: str, values: dict[str, Any]) -> Self:
        """Validate ``values``; raises UserError with one sentence naming the key and the nearest known one."""
        for key in values:
            if key in cls.retired():
                raise UserError(f"{section}.{key} was retired: {cls.retired()[key]}")
            if key not in cls.model_fields:
                near = difflib.get_close_matches(key, cls.model_fields, n=1)
                hint = f"; did you mean {section}.{near[0]}?" if near else f"; `rpt stage {section.split('.')[0]} --help` lists them."
                raise UserError(f"unknown setting {section}.{key}{hint}")
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"]) or section
            raise UserError(f"{section}.{name}: {first['msg']} (got {first.get('input')!r})") from None

    @property
    def changed(self) -> str:
        """What differs from the defaults, for the name of a run: " steps=6, lr=0.001", or nothing. At most SHOWN characters."""
        values = self.model_dump(mode="json", exclude_defaults=True)
        text = ", ".join(f"{name}={value}" for name, value in values.items())
        return f" {text if len(text) <= SHOWN else text[: SHOWN - 1] + '…'}" if text else ""

    def semantic_values(self) -> dict[str, Any]:
        """The fields that enter the identity, as JSON values."""
        values = self.model_dump(mode="json")
        return {name: values[name] for name, field in type(self).model_fields.items() if is_semantic(field)}

    def runtime_values(self) -> dict[str, Any]:
        values = self.model_dump(mode="json")
        return {name: values[name] for name, field in type(self).model_fields.items() if not is_semantic(field)}


def is_semantic(field: Any) -> bool:
    extra = field.json_schema_extra
    if not isinstance(extra, dict) or "semantic" not in extra:
        raise TypeError("declare the field with semantic(...) or runtime(...)")
    return bool(extra["semantic"])
