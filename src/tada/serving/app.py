"""The HTTP side of a server: its paths, what they take and answer, and the page that explains them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from functools import partial
from importlib.metadata import version
from time import monotonic
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from tada.errors import DecodeTimeoutError, TooLargeError, UserError, VideoError
from tada.serving.guide import guide
from tada.serving.limits import LEAST_WINDOW_SECONDS, MOST_CLIPS
from tada.serving.metrics import CONTENT_TYPE
from tada.serving.service import Options, Service
from tada.serving.uploads import Refusal
from tada.system.terminal import printable

_DRAIN_SECONDS, _DRAIN_BYTES = 2.0, 1 << 24
_NO_FOREIGN_HOST = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["video"],
                    "properties": {"video": {"type": "string", "format": "binary"}},
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


class Problem(BaseModel):
    """Why a request has no answer."""

    detail: str = Field(description="One line: what is wrong, the rule, the way out")
    reason: str = Field(description="One word for programs: truncated, too_large, timeout, busy, ...")


class Clip(BaseModel):
    """The classes of a clip of the video."""

    start_seconds: float | None
    end_seconds: float | None
    scores: dict[str, float]


class PredictionAnswer(BaseModel):
    """What happens in a video, as `tada predict --format json`."""

    video: str = Field(description="The client's name of the file")
    label: str | None = Field(None, description="The most probable class, where a video has one")
    labels: list[str] | None = Field(None, description="Where it may have several: those that reach their thresholds")
    thresholds: dict[str, float] | None = None
    scores: dict[str, float]
    clips: list[Clip]


class Segment(BaseModel):
    """Something that happens in a video, and when."""

    start_seconds: float
    end_seconds: float
    label: str
    score: float


class LocalizationAnswer(BaseModel):
    """What happens in a video and when, as `tada localize --format json`."""

    video: str = Field(description="The client's name of the file")
    duration_seconds: float
    segments: list[Segment]


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The form is broken, or has no file, or several"},
    408: {"model": Problem, "description": "The upload took too long"},
    413: {"model": Problem, "description": "The file or the video is larger or longer than the limit"},
    415: {"model": Problem, "description": "The body is of another type than a video"},
    422: {"model": Problem, "description": "The video cannot be read, or an option is out of its range"},
    507: {"model": Problem, "description": "The server's disk is full"},
    503: {
        "model": Problem,
        "description": "Too many requests, or no answer in time; Retry-After: when to try again",
    },
}


def create_app(service: Service) -> FastAPI:
    """The ASGI application that answers for a service."""
    app = FastAPI(
        title="tada",
        version=version("tada-video"),
        description=f"{service.model!r}",
        docs_url=None,  # FastAPI's pages load scripts from another host
        redoc_url=None,
        exception_handlers={
            Refusal: _refuse,
            RequestValidationError: partial(_refuse_options, service),
            HTTPException: _refuse_path,
        },
    )
    _add_predict(app, service)

    @app.get("/healthz", summary="Whether videos are answered now", responses={503: {"description": "It is ending"}})
    async def healthz() -> JSONResponse:
        # A process for videos that has died is no reason to send none: the next video starts it again.
        status, code = ("ending", 503) if service.is_ending else ("ok", 200)
        return JSONResponse({"status": status, "model": repr(service.model), "version": app.version}, code)

    @app.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE})

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        page = guide(app.openapi(), service.limits, str(request.base_url))
        return HTMLResponse(page, headers={"content-security-policy": _NO_FOREIGN_HOST})

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("docs")

    return app


def _add_predict(app: FastAPI, service: Service) -> None:
    Top = Annotated[int, Query(ge=1, description="Classes to name")]
    Clips = Annotated[
        int | None, Query(ge=1, le=MOST_CLIPS, description="Number of clips, spread over the video or each window")
    ]
    Window = Annotated[
        float | None, Query(ge=LEAST_WINDOW_SECONDS, le=1e6, description="Divide the video into windows this long")
    ]
    Score = Annotated[float | None, Query(ge=0, le=1, description="In place of each class's own threshold")]

    async def what(request: Request, top: Top = 5, clips: Clips = None, window_seconds: Window = None) -> Response:
        return await _answer(service, request, Options(top=top, clips=clips, window_seconds=window_seconds))

    async def when(request: Request, min_score: Score = None) -> Response:
        return await _answer(service, request, Options(min_score=min_score))

    what.__doc__ = "The answer is that of `tada predict --format json` for this video."
    when.__doc__ = "The answer is that of `tada localize --format json` for this video."
    for endpoint in (what, when):  # their annotations are texts, and name what only this function knows
        endpoint.__annotations__ = {
            "request": Request,
            "return": Response,
            **({"top": Top, "clips": Clips, "window_seconds": Window} if endpoint is what else {"min_score": Score}),
        }
    app.add_api_route(
        "/predict",
        what if service.is_recognizer else when,
        methods=["POST"],
        summary="What happens in a video" if service.is_recognizer else "What happens in a video, and when",
        operation_id="predict",
        response_model=None,
        responses={200: {"model": PredictionAnswer if service.is_recognizer else LocalizationAnswer}, **_PROBLEMS},
        openapi_extra=_BODY,
    )


async def _answer(service: Service, request: Request, options: Options) -> Response:
    begin = monotonic()
    reason, status = "failed", 500  # a bug of ours
    try:
        _check_names(request, service)
        with service.admitted():
            headers = request.headers
            body = service.upload(request.stream(), headers.get("content-type", ""), headers.get("content-length"))
            async with body as upload:
                found = await service.answer(upload, options, lambda: _until_gone(request.receive))
        reason, status = "ok", 200
        return Response(json.dumps(found), media_type="application/json")
    except Refusal as refusal:
        reason, status = refusal.reason, refusal.status
        raise
    except ClientDisconnect:
        reason, status = "disconnected", 499
        return Response(status_code=499)  # nobody reads it
    except VideoError as error:
        reason, status = error.reason, _status_of(error)
        return _problem(status, str(error), reason)
    except UserError as error:
        reason, status = "option", 422
        return _problem(status, str(error), reason)
    finally:
        service.metrics.answers.labels(str(status), reason).inc()
        service.metrics.seconds.observe(monotonic() - begin)


def _check_names(request: Request, service: Service) -> None:
    """Refuse options in the address that the model does not have, which would be passed over."""
    known = ("top", "clips", "window_seconds") if service.is_recognizer else ("min_score",)
    unknown = sorted(set(request.query_params) - set(known))
    if unknown:
        raise Refusal(
            422, "option", f"this model has no option {printable(unknown[0])[:100]!r}; it has {', '.join(known)}"
        )


def _status_of(error: VideoError) -> int:
    return 413 if isinstance(error, TooLargeError) and not isinstance(error, DecodeTimeoutError) else 422


async def _until_gone(receive: Callable[[], Awaitable[Any]]) -> None:
    """Wait until the client has gone; its body was read before."""
    while (await receive())["type"] != "http.disconnect":
        pass


# -- refusals ---------------------------------------------------------------------------------------------------------


def _problem(status: int, message: str, reason: str) -> JSONResponse:
    return JSONResponse({"detail": message, "reason": reason}, status)


async def _refuse(request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    response = _LingeringResponse({"detail": refusal.message, "reason": refusal.reason}, refusal.status)
    if refusal.retry_seconds is not None:
        response.headers["retry-after"] = str(refusal.retry_seconds)
    return response


async def _refuse_options(service: Service, request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    service.metrics.answers.labels("422", "option").inc()
    first = error.errors()[0]
    message = f"{first['loc'][-1]}: {first['msg'][:1].lower()}{first['msg'][1:]}"
    return _LingeringResponse({"detail": message, "reason": "option"}, 422)


async def _refuse_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    hint = "; POST a video to /predict, /docs explains how" if error.status_code in (404, 405) else ""
    reason = "wrong_method" if error.status_code == 405 else "no_such_path"
    content = {"detail": f"{error.detail}{hint}", "reason": reason}
    return _LingeringResponse(content, error.status_code, headers=dict(error.headers or {}))


class _LingeringResponse(JSONResponse):  # type: ignore[misc]  # mypy skips starlette, see pyproject.toml
    """A response before the body has been read: it reads on for a while before the connection is closed.

    Otherwise the system would reset the connection, and a client that still sends would not see the response.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers["connection"] = "close"
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await send(start)
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        num_bytes = 0
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while num_bytes < _DRAIN_BYTES:
                    message = await receive()
                    num_bytes += len(message.get("body", b""))
                    if message["type"] == "http.disconnect" or not message.get("more_body"):
                        break
        except TimeoutError:
            pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})
