"""Constraints on the output that no honest client asks for: name to path and body."""

from typing import Any, Final

from e2e.bodies import CHAT, chat


def guided(**constraint: Any) -> tuple[str, bytes]:
    """A constraint on the output."""
    return chat(structured_outputs=constraint)


def nested(depth: int) -> Any:
    """A JSON schema of objects in objects."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


CONSTRAINTS: Final = {
    "regex broken": guided(regex="(["),
    "regex empty": guided(regex=""),
    "regex lookbehind": guided(regex="(?<=a)b"),
    "regex backreference": guided(regex=r"(a)\1"),
    "regex 10^9 times": guided(regex="a{1000000000}"),
    "regex nested repeats": guided(regex="((a{1000}){1000}){1000}"),
    "regex catastrophic": guided(regex="(x+x+)+y" * 200),
    "regex not utf8": guided(regex="\x00"),
    "regex 500 KB": guided(regex="(a|b)" * 100_000),
    "regex nested parens": guided(regex="(" * 50_000 + ")" * 50_000),
    "grammar broken": guided(grammar="root ::= ("),
    "grammar empty": guided(grammar=""),
    "grammar without a root": guided(grammar='a ::= "b"'),
    "grammar undefined rule": guided(grammar="root ::= nothing"),
    "grammar left recursion": guided(grammar='root ::= root "a"'),
    "grammar infinite": guided(grammar="root ::= root"),
    "grammar nested": guided(grammar="root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000),
    "grammar lark": guided(grammar='start: "a"+'),
    "grammar repeat": guided(grammar='root ::= ("a"{1000}){1000}{1000}'),
    "schema no object": guided(json="5"),
    "schema not json": guided(json="{"),
    "schema list": guided(json="[]"),
    "schema unknown type": guided(json={"type": "smell"}),
    "schema recursion": guided(json={"$ref": "#"}),
    "schema recursion defs": guided(json={"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}),
    "schema remote": guided(json={"$ref": "http://127.0.0.1:1/schema.json"}),
    "schema file": guided(json={"$ref": "file:///etc/passwd"}),
    "schema ref missing": guided(json={"$ref": "#/nothing"}),
    "schema deep": guided(json=nested(400)),
    "schema deep 3000": (
        CHAT,
        b'{"model":"model","messages":[{"role":"user","content":"Hi"}],"max_tokens":2,"structured_outputs":{"json":'
        + b'{"type":"object","properties":{"a":' * 3000
        + b'{"type":"string"}'
        + b"}}" * 3000
        + b"}}",
    ),
    "schema deep string": guided(
        json='{"type":"object","properties":{"a":' * 10000 + '{"type":"string"}' + "}}" * 10000
    ),
    "schema pattern broken": guided(json={"type": "string", "pattern": "(["}),
    "schema length": guided(json={"type": "string", "minLength": 10**12, "maxLength": 10**12}),
    "schema length contradiction": guided(json={"type": "string", "minLength": 5, "maxLength": 1}),
    "schema items": guided(json={"type": "array", "items": {"type": "string"}, "minItems": 10**9}),
    "schema false": guided(json={"type": "object", "properties": {"a": False}, "required": ["a"]}),
    "schema minimum": guided(json={"type": "integer", "minimum": 10**30, "maximum": -(10**30)}),
    "schema enum empty": guided(json={"enum": []}),
    "schema multipleOf": guided(json={"type": "integer", "multipleOf": 0}),
    "choices none": guided(choice=[]),
    "choices empty string": guided(choice=[""]),
    "choices numbers": guided(choice=[1, 2]),
    "two constraints": guided(regex="a", choice=["b"]),
    "no constraint": guided(),
    "constraint a number": chat(structured_outputs=5),
    "structural tag": guided(structural_tag="{}"),
    "structural tag not json": guided(structural_tag="{"),
    "structural tag bad": guided(structural_tag='{"structures": [{"begin": 1}], "triggers": 5}'),
    "structural tag types": guided(structural_tag='{"type": "structural_tag", "format": {"type": "x"}}'),
    "whitespace": guided(json={"type": "object"}, whitespace_pattern="(["),
    "response_format unknown": chat(response_format={"type": "smell"}),
    "response_format without schema": chat(response_format={"type": "json_schema"}),
    "response_format schema null": chat(response_format={"type": "json_schema", "json_schema": {"name": "a"}}),
    "response_format bad schema": chat(
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "smell"}}}
    ),
    "response_format tag": chat(response_format={"type": "structural_tag", "structures": [], "triggers": []}),
}
