"""The MCP server, by the official SDK: its description, its tools, and how a request becomes a call."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import msgspec
from mcp.server import Server
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    ToolAnnotations,
)
from mcp_types import Tool as ShownTool

from streamproc import __version__
from streamproc.mcp.calls import Caller, Calls, ToolAnswer
from streamproc.mcp.tools import INSTRUCTIONS, Tool, all_tools
from streamproc.mcp.words import of_defect
from streamproc.telemetry.trace_context import is_unsampled, span_context_of

TOOLS_FRESH_MS: Final = 3_600_000
"""How long clients may cache the tools, which change only with the version of the process."""
REFUSED: Final = "streamproc.token_refused"
"""Set in a request's ASGI scope if the API does not know its token: the answer over HTTP is then 401 too."""
log = logging.getLogger(__name__)

Context: TypeAlias = "ServerRequestContext[Any, Any]"


def server_of(calls: Calls, token_of: Callable[[Context], str]) -> Server[Any]:
    """The server. `token_of` gives a request's token."""
    tools = {one.name: one for one in all_tools()}
    listed = _listed(list(tools.values()))

    async def list_tools(_context: Context, _params: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=listed, ttl_ms=TOOLS_FRESH_MS, cache_scope="public")

    async def call_tool(context: Context, params: CallToolRequestParams) -> CallToolResult:
        tool = tools.get(params.name)
        if tool is None:
            raise MCPError(INVALID_PARAMS, f"there is no such tool; there are {', '.join(tools)}")
        caller = Caller(token_of(context), _traceparent(context))
        try:
            answer = await calls.call(tool, params.arguments or {}, caller)
        except Exception:
            # A defect. The SDK would show some clients Python's own text, which belongs in our log.
            log.exception("%s failed", tool.name)
            answer = ToolAnswer(of_defect(asks=tool.asks))
        if answer.status == 401 and context.request is not None:
            context.request.scope[REFUSED] = True
        return _result(answer)

    return Server(
        "streamproc",
        version=__version__,
        title="streamproc",
        description="Asks for payouts that are governed before money moves, and shows what became of them.",
        instructions=INSTRUCTIONS,
        # Else the SDK would list all tools for each call over HTTP, to look for headers that none of ours declares.
        get_tool_input_schema=lambda _name: None,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


def _result(answer: ToolAnswer) -> CallToolResult:
    """Words first. Structured content is added as text too, for clients that read nothing else."""
    texts = [answer.text] if answer.text else []
    if answer.shown is not None:
        texts.append(msgspec.json.encode(answer.shown).decode())
    return CallToolResult(
        content=[TextContent(type="text", text=text) for text in texts],
        structured_content=answer.shown,
        is_error=answer.shown is None,
    )


def _listed(tools: Sequence[Tool]) -> list[ShownTool]:
    return [
        ShownTool(
            name=one.name,
            title=one.title,
            description=one.description,
            input_schema=one.arguments(),
            output_schema=dict(one.answer),
            # Always all four: a missing one counts as destructive and open. They are hints; the API decides.
            annotations=ToolAnnotations(
                title=one.title,
                read_only_hint=not one.asks,
                destructive_hint=one.asks,
                idempotent_hint=True,
                open_world_hint=one.asks,
            ),
        )
        for one in tools
    ]


def _traceparent(context: Context) -> str:
    """The caller's trace context, if the API would follow it: its trace, or that it is not sampled."""
    given = (context.meta or {}).get("traceparent")
    is_known = isinstance(given, str) and (span_context_of(given) is not None or is_unsampled(given))
    return str(given) if is_known else ""
