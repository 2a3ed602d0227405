"""The tools are the API's own operations; none of them can approve anything or change what agents may do."""

import json
import re

import pytest
from jsonschema_rs import Draft202012Validator

from streamproc.api.shapes import ORDER
from streamproc.domain.tokens import ALLOWED
from streamproc.mcp.tools import INSTRUCTIONS, PAGE_MAX, Tool, all_tools

TOOLS = {one.name: one for one in all_tools()}
each = pytest.mark.parametrize("tool", TOOLS.values(), ids=list(TOOLS))


def test_the_tools_are_few_and_always_in_the_same_order() -> None:
    assert list(TOOLS) == [
        *("request_payout", "get_payout", "list_payout_events"),
        *("get_budget", "list_holds", "list_audit"),
    ]
    assert [one.name for one in all_tools()] == list(TOOLS)


@each
def test_no_tool_answers_a_hold_or_changes_a_policy_or_a_token(tool: Tool) -> None:
    assert tool.operation.action in {"request", "read own", "read all"}
    assert tool.operation.action not in {"review", "administer"}
    assert (tool.operation.method, tool.asks) in {("GET", False), ("POST", True)}
    assert [one.name for one in TOOLS.values() if one.asks] == ["request_payout"]


def test_an_agents_token_may_call_every_tool_but_the_audit() -> None:
    may = {name for name, one in TOOLS.items() if one.operation.action in ALLOWED["agent"]}
    assert may == TOOLS.keys() - {"list_audit"}


@each
def test_the_arguments_are_a_closed_object_that_any_models_api_takes(tool: Tool) -> None:
    schema = tool.arguments()
    Draft202012Validator(schema)
    assert schema["additionalProperties"] is False
    assert schema.keys() == {"type", "properties", "required", "additionalProperties"}  # no oneOf on top
    assert set(schema["required"]) <= schema["properties"].keys()
    assert all(re.fullmatch(r"[a-z_]+", name) for name in schema["properties"])


@each
def test_what_a_tool_says_has_a_schema_that_is_whole(tool: Tool) -> None:
    schema = dict(tool.answer)
    Draft202012Validator(schema)
    assert schema["type"] == "object"
    named = set(re.findall(r"#/\$defs/(\w+)", json.dumps(schema)))
    assert named == set(schema.get("$defs", {}))


def test_a_request_takes_the_fields_of_the_apis_own_body_its_key_and_how_long_to_wait() -> None:
    schema = TOOLS["request_payout"].arguments()
    assert schema["properties"].keys() == ORDER["properties"].keys() | {"idempotency_key", "wait_s"}
    assert all(schema["properties"][name] == field for name, field in ORDER["properties"].items())
    assert set(schema["required"]) == {"idempotency_key", "amount", "mode", "purpose"}


def test_a_page_is_shorter_than_over_http_because_a_model_reads_it_whole() -> None:
    for name in ("list_holds", "list_audit"):
        limit = TOOLS[name].arguments()["properties"]["limit"]
        assert (limit["maximum"], limit["default"]) == (PAGE_MAX, 20)


@each
def test_what_a_model_is_told_names_the_tools_by_their_names(tool: Tool) -> None:
    assert tool.title
    told = set(re.findall(r"\b(?:get|list|request)_\w+", INSTRUCTIONS + tool.description))
    assert told <= TOOLS.keys()
