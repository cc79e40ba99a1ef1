"""The JSON Schema of a pipeline, with the options of every installed plugin."""

from typing import Any

from retinakit.contracts.errors import UserError
from retinakit.pipeline.document import SECTIONS, PipelineDocument
from retinakit.registry.find import Registry


def pipeline_schema(registry: Registry) -> dict[str, Any]:
    """The schema with which an editor checks and completes a pipeline.

    Plugins that cannot be imported are left out.
    """
    schema = PipelineDocument.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    definitions = schema["$defs"]
    for kind, section in SECTIONS.items():
        step = definitions[f"{kind.capitalize()}Document"]
        names, branches = [], []
        for name in registry.names(kind):
            entry = registry.find(kind, name)
            try:
                cls = registry.load(kind, name)
            except UserError:
                continue
            options = cls.Config.model_json_schema()  # type: ignore[attr-defined]
            for shared, definition in options.pop("$defs", {}).items():
                definitions[shared] = definition
            definitions[f"{kind}:{name}"] = options
            names.append({"const": name, "description": entry.spec.summary if entry.spec else ""})
            sweepable = {option: {"type": "array"} for option in (*options["properties"], "seed")}
            varied: dict[str, Any] = {
                "sweep": {"properties": sweepable, "additionalProperties": False}
            }
            if kind == "model":
                over = {
                    "properties": dict.fromkeys(sweepable, True),
                    "additionalProperties": False,
                }
                varied["search"] = {"properties": {"over": over}}
            branches.append(
                {
                    "if": {
                        "properties": {"plugin": {"enum": [name, entry.full_name]}},
                        "required": ["plugin"],
                    },
                    "then": {
                        "properties": {
                            "with": {"$ref": f"#/$defs/{kind}:{name}"},
                            **varied,
                        }
                    },
                }
            )
        step["properties"]["plugin"]["anyOf"] = [*names, {"pattern": ":"}]
        step["properties"]["plugin"].pop("default", None)
        step["required"] = sorted({*step.get("required", []), "plugin"})
        step["allOf"] = branches
        schema["properties"][section]["description"] += f" ({len(names)} plugins are installed)"
    return schema
