"""The page at `/docs`: the API's OpenAPI document as one HTML file, which has no scripts and loads no other files."""

import base64
import hashlib
from html import escape
from typing import Any

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "code{font-family:ui-monospace,monospace}h2{margin-top:2.5rem}"
    "table{border-collapse:collapse;width:100%}td,th{text-align:start;vertical-align:top;padding:.2rem 1rem .2rem 0}"
)
POLICY = (
    f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def render(document: dict[str, Any]) -> str:
    """A section for each path and method, with the fields of its body."""
    schemas = document["components"]["schemas"]
    sections = [
        _section(path, method, operation, schemas)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    title = escape(f"{document['info']['title']}: API")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>"
        f'<p>The same for programs: <a href="openapi.json">openapi.json</a>.</p>{"".join(sections)}</html>\n'
    )


def _section(path: str, method: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    heading = f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation.get('description', ''))}</p>"
    fields = [(each["name"], each["schema"], each.get("required")) for each in operation.get("parameters", [])]
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    if "$ref" in content.get("schema", {}):
        schema = schemas[_name(content["schema"])]
        required = schema.get("required", [])
        fields += [(name, each, name in required) for name, each in schema["properties"].items()]
    rows = "".join(_row(*field) for field in fields)
    return heading + (f"<table><tr><th>field<th>type<th>default<th>meaning</tr>{rows}</table>" if rows else "")


def _row(name: str, schema: dict[str, Any], is_required: bool) -> str:
    default = "required" if is_required else str(schema.get("default", ""))
    cells = (f"<code>{escape(name)}</code>", escape(_type(schema)), escape(default))
    return f"<tr><td>{'<td>'.join(cells)}<td>{escape(schema.get('description', ''))}</tr>"


def _type(schema: dict[str, Any]) -> str:
    """The type in words, with the bounds of a number."""
    if "$ref" in schema:
        return _name(schema)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(each) for each in schema["anyOf"] if each.get("type") != "null"))
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    bounds = [f"{sign} {schema[key]:,}" for key, sign in (("minimum", "≥"), ("maximum", "≤")) if key in schema]
    return " ".join([str(schema.get("const", schema.get("type", "any"))), *bounds])


def _name(schema: dict[str, Any]) -> str:
    return str(schema["$ref"]).rpartition("/")[2]
