"""The page's looks: gradio's components, and which calls of ``Page`` they make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any

from tada.demo.page import Page

_MOST_WAITING = 16  # visitors whose videos wait


def theme() -> Any:
    """Colors and the machine's own fonts: gradio's default theme would load some from elsewhere."""
    import gradio as gr

    fonts = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
    return gr.themes.Default(primary_hue="blue", **fonts)


def blocks(page: Page) -> Any:
    """The page as gradio's Blocks."""
    import gradio as gr

    def with_request(call: Callable[..., Any]) -> Callable[..., Any]:
        """Gradio gives a request to the argument with this annotation, which ``annotations`` made a text."""
        call.__annotations__["request"] = gr.Request
        return call

    @with_request
    def begin(request: Any) -> dict[str, Any]:
        return page.begin(str(request.session_hash))

    @with_request
    def end(request: Any) -> None:
        page.end(str(request.session_hash))

    @with_request
    def recognize(upload: str | None, request: Any) -> Iterator[Any]:
        for state in page.recognize(request.session_hash, upload):
            yield state, None

    @with_request
    def draw(request: Any) -> Iterator[Any]:
        yield from page.draw(request.session_hash)

    names = ", ".join(model.name for model in page.models)
    limits = f"up to {page.limits.max_minutes:g} minutes and {page.limits.max_megabytes} MB"
    hint = (
        f"Drop a video above ({limits}), record one, or draw one. It is asked: {names}. It stays on this machine, and "
        "is deleted when you leave."
    )
    with gr.Blocks(title="tada", analytics_enabled=False, delete_cache=(600, 3600)) as made:
        gr.HTML("<h1>tada</h1><p>What happens in a video, and when.</p>", elem_classes="tada-title", js_on_load=None)
        with gr.Tab("Ask about a video"):
            video = gr.Video(label="Video", sources=["upload", "webcam"], include_audio=True, height=275)
            drawn = gr.Button("No video at hand? Draw a motion", size="sm")
            stage = gr.HTML(
                {"hint": hint},
                html_template="<div class='tada-stage'></div>",
                js_on_load=asset("stage.js"),
                elem_id="stage",
            )
        with gr.Tab("Teach gestures"):
            gr.HTML(
                "<p>Press <b>1</b> and make the first gesture, press <b>2</b> and make the second one; ten clips of "
                "each are good. Then train, and watch it recognize you. All of it stays on this machine.</p>",
                elem_classes="tada-title",
                js_on_load=None,
            )
            gestures = gr.HTML(
                {},
                html_template="<div class='tada-gestures'></div>",
                js_on_load=asset("gestures.js"),
                server_functions=page.calls,
                elem_id="gestures",
            )
        queued: dict[str, Any] = {
            "concurrency_limit": 1,
            "concurrency_id": "models",
            "api_visibility": "private",
            "show_progress_on": [stage],
        }
        for event in (video.upload, video.stop_recording):
            event(recognize, [video], [stage, video], trigger_mode="always_last", **queued)
        drawn.click(draw, None, [stage], **queued)
        made.load(begin, None, [gestures], api_visibility="private", show_progress="hidden", queue=False)
        made.unload(end)
    return made.queue(max_size=_MOST_WAITING, default_concurrency_limit=1)


def asset(name: str) -> str:
    """The text of a file beside this module."""
    return files("tada.demo").joinpath(name).read_text(encoding="utf-8")
