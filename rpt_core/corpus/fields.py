"""From a record to a text: a template with literal ``{name}`` replacement. The fields it does not use go to the document's meta."""

import json
import re
from typing import Any

from rpt_core.corpus.documents import Document, Record, Report
from rpt_core.store.errors import UserError

NAME = re.compile(r"\{([A-Za-z_][\w.-]*)\}")
META_BYTES = 16 * 2**10

# Shapes known by their fields, tried in this order; the first whose fields a record has is its template.
SHAPES = ("{text}", "{problem}\n\n{solution}", "{question}\n\n{solution}", "{question}\n\n{answer}", "{prompt}\n\n{completion}",
          "{instruction}\n\n{output}", "{content}")


def template_fields(template: str) -> list[str]:
    """The names a template uses; UserError when it uses none."""
    names = NAME.findall(template)
    if not names:
        raise UserError(f"ingest.text_template {template!r} names no field; write e.g. {{problem}}\\n\\n{{solution}}, or auto.")
    return names


def shape_of(fields: dict[str, Any]) -> str:
    """The template ``auto`` stands for on this record, or '' when no shape is known."""
    return next((shape for shape in SHAPES if all(isinstance(fields.get(name), str) for name in NAME.findall(shape))), "")


def _as_text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def to_document(record: Record, template: str, report: Report) -> Document | None:
    """The record's document, or None after reporting a field that is missing or is not text."""
    chosen = shape_of(record.fields) if template == "auto" else template
    if not chosen:
        report.bad("missing_field", record.where, f"none of the known shapes fits its fields ({', '.join(record.fields) or 'none'}); "
                   "set ingest.text_template")
        return None
    parts: dict[str, str] = {}
    for name in NAME.findall(chosen):
        value = record.fields.get(name)
        if value is None:
            report.bad("missing_field", record.where, f"the field {name} is missing")
            return None
        text = _as_text(value)
        if text is None:
            report.bad("wrong_type", record.where, f"the field {name} is not text but {type(value).__name__}")
            return None
        parts[name] = text
    report.count(f"template:{chosen}")
    text = NAME.sub(lambda match: parts[match[1]], chosen)
    return Document(text, record.source, record.where, {name: value for name, value in record.fields.items() if name not in parts})


def encode_meta(meta: dict[str, Any], report: Report) -> str:
    """``meta`` as JSON of at most META_BYTES; the longest fields are left out first, and named under ``_left_out``."""
    encoded = {name: json.dumps(value, ensure_ascii=True, default=str) for name, value in meta.items()}
    left_out: list[str] = []
    for name in sorted(encoded, key=lambda name: (-len(encoded[name]), name)):
        if sum(len(name) + len(value) + 4 for name, value in encoded.items()) <= META_BYTES:
            break
        del encoded[name]
        left_out.append(name[:100])
    if left_out:
        report.count("meta_fields_left_out", len(left_out))
        encoded["_left_out"] = json.dumps(left_out[:100])
    return "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in encoded.items()) + "}"
