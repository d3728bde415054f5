"""The OpenAPI description of the HTTP service."""

from typing import Any

from eimf.core.version import VERSION
from eimf.serving.recommender import LARGEST_WEIGHT


def describe_api() -> dict[str, Any]:
    """The description, as plain values."""
    item_id = {"type": ["string", "number"], "description": "A text; a whole number stands for its decimal text."}
    ids = {"type": "array", "items": item_id}
    history = {"type": "array", "items": item_id | {"type": ["string", "number", "null"]}, "maxItems": 10_000}
    value = {"type": ["string", "number", "boolean"]}
    bounds = {"type": "object", "properties": {"min": {"type": "number"}, "max": {"type": "number"}}}
    condition = {"anyOf": [value, {"type": "array", "items": value}, bounds]}
    conditions = {
        "description": "Item ids, or conditions by column: a value, values, or a range.",
        "anyOf": [ids, {"type": "object", "additionalProperties": condition}, {"type": "null"}],
    }
    n = {"type": "integer", "minimum": 1, "maximum": 1000, "default": 10}
    request = _closed(
        "history",
        {
            "history": history | {"description": "Item ids, oldest first."},
            "n": n,
            "filter_seen": {"type": ["boolean", "null"], "description": "null: as in the run's evaluation."},
            "allow": conditions,
            "deny": conditions,
            "merge": {"enum": ["best", "proportional"], "default": "best"},
            "diversity": {"type": "number", "minimum": 0, "maximum": LARGEST_WEIGHT, "default": 0},
            "by_interest": {"type": "boolean", "default": False},
            "unknown": {"enum": ["skip", "error"], "default": "skip"},
            "words": {
                "type": "array",
                "items": {"type": "string", "maxLength": 1000},
                "maxItems": 16,
                "description": "Interests in words, beside those of the history. The run needs a map: eimf map RUN.",
            },
        },
    )
    many = _closed(
        "requests", {"requests": {"type": "array", "minItems": 1, "maxItems": 256, "items": _ref("Request")}}
    )
    item = {
        "type": "object",
        "properties": {
            "item_id": {"type": "string"},
            "title": {"type": "string"},
            "score": {"type": "number"},
            "interest": {"type": ["integer", "null"], "description": "null: a popular or a similar item."},
        },
    }
    items = {"type": "array", "items": _ref("Item")}
    answer = {
        "type": "object",
        "required": ["skipped", "fallback"],
        "properties": {
            "items": items,
            "lists": {"type": "array", "items": items, "description": "With by_interest, instead of items."},
            "names": {
                "type": "array",
                "items": {"type": "string"},
                "description": "With by_interest: the name of each interest, where interests have names.",
            },
            "skipped": {"type": "integer", "description": "Items of the history that are not in the catalogue."},
            "fallback": {"type": "boolean", "description": "No known item: the list is of popular items."},
        },
    }
    answers = {"type": "object", "properties": {"answers": {"type": "array", "items": _ref("Answer")}}}
    similar = _closed("item_id", {"item_id": item_id, "n": n, "allow": conditions, "deny": conditions})
    new_item = {
        "type": "object",
        "required": ["item_id"],
        "description": "Other fields are columns of the catalogue. With a text map of own vectors: vector, not title.",
        "properties": {
            "item_id": item_id,
            "title": {"type": "string"},
            "categories": {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": ["string", "null"]}]},
            "brand": {"type": ["string", "null"]},
            "vector": {"type": "array", "items": {"type": "number"}},
        },
    }
    new_items = _closed(
        "items", {"items": {"type": "array", "minItems": 1, "maxItems": 1000, "items": _ref("NewItem")}}
    )
    added = {
        "type": "object",
        "properties": {
            "added": {"type": "integer", "description": "How many items of this call were added: all of them."},
            "items": {"type": "integer", "description": "Size of the catalogue now."},
        },
    }
    plain: dict[str, Any] = {"type": "object"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "EIMF", "version": VERSION, "description": "Recommendations by a trained run."},
        "paths": {
            "/recommend": _post(
                "Lists for one or many histories. A call may ask for 100,000 rows: n times the lists of all requests",
                _any("Request", "Requests"),
                _any("Answer", "Answers"),
            ),
            "/similar": _post(
                "Items similar to an item", _ref("Similar"), {"type": "object", "properties": {"items": items}}
            ),
            "/items": _post(
                "Add new items by title, kept in memory. The run needs a map: eimf map RUN", _ref("NewItems"), added
            ),
            "/health": _get("Whether the service answers", plain),
            "/about": _get("The run, its digests, the size of its catalogue", plain),
            "/openapi.json": _get("This description", plain),
        },
        "components": {
            "schemas": {
                **{"Request": request, "Requests": many, "Item": item, "Answer": answer, "Answers": answers},
                **{"Similar": similar, "NewItem": new_item, "NewItems": new_items},
                "Error": {"type": "object", "properties": {"error": {"type": "string"}}},
            },
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "Where the service was given EIMF_TOKEN."}
            },
        },
        "security": [{"token": []}, {}],
    }


def _closed(required: str, properties: dict[str, Any]) -> dict[str, Any]:
    """An object that has one field at least, and no other fields than these."""
    return {"type": "object", "required": [required], "additionalProperties": False, "properties": properties}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _any(*names: str) -> dict[str, Any]:
    return {"anyOf": [_ref(name) for name in names]}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


def _get(text: str, reply: dict[str, Any]) -> dict[str, Any]:
    return {"get": {"summary": text, "responses": {"200": {"description": "OK"} | _json(reply)}}}


def _post(text: str, body: dict[str, Any], reply: dict[str, Any]) -> dict[str, Any]:
    error = _json(_ref("Error"))
    responses = {
        "200": {"description": "OK"} | _json(reply),
        "400": {"description": "A field is wrong; the message says which"} | error,
        "401": {"description": "The token is missing or wrong"} | error,
        "413": {"description": "The body is too large"} | error,
    }
    return {"post": {"summary": text, "requestBody": {"required": True} | _json(body), "responses": responses}}
