"""Draw captions into the frames of a video: classes with their scores, and a timeline below the picture.

Shapes: H x W pixels of a frame. Scores are from 0 to 1, times in seconds from the container's start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tada.display.fonts import font_file, lettering

_COLORS = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 190, 130),
    (204, 121, 167),
    (240, 228, 66),
    (213, 94, 0),
)  # Okabe and Ito
_OTHERS = (150, 150, 150)
_BACK, _EMPTY, _PLAYED, _WHITE = (22, 22, 24), (50, 50, 54), (120, 120, 126), (255, 255, 255)
_NAMED = 3
"""Most classes named at a time."""
_SMALLEST, _LARGEST = 13, 44  # text size, in pixels
_LINES = 26  # of text per frame height; the text size follows from it, within these bounds


@dataclass(frozen=True, kw_only=True, slots=True)
class Lane:
    """A class's row in the timeline: when it occurs."""

    label: str
    spans: tuple[tuple[float, float, float], ...]
    """(start, end, score) of each occurrence, in order of time."""
    is_curve: bool
    """True: the spans are one score's curve over the whole video. False: they are separate segments."""

    @property
    def weight(self) -> float:
        """Duration times score; lanes with the largest are drawn where there is no room for all."""
        return sum(min(end - start, 1e6) * score for start, end, score in self.spans)


class Captions:
    """Draws captions into frames of one size.

    Args:
        width: of a frame, in pixels.
        height: of a frame, in pixels.
        duration_seconds: of the video.

    Attributes:
        height: of the output in pixels, frame and timeline together; even.
        legend: {number: name} of the classes drawn as numbers since no font has their letters.
    """

    def __init__(self, lanes: Sequence[Lane], *, width: int, height: int, duration_seconds: float) -> None:
        self._width, self._frame_height, self._duration = width, height, max(duration_seconds, 1e-3)
        self._text = _Text(min(max(min(width, height) // _LINES, _SMALLEST), _LARGEST))
        self._row = round(1.6 * self._text.size)
        self._pad = max(self._text.size // 3, 3)
        room = max(round(0.35 * height / self._row) - 1, 2)
        names = lettering([lane.label for lane in lanes])
        self.legend = names.legend
        self._lanes = [replace(lane, label=shown) for lane, shown in zip(lanes, names.shown, strict=True)]
        self._colors = [_COLORS[i % len(_COLORS)] for i in range(len(lanes))]
        self._drawn = self._choose_lanes(room)
        self.height = height + self._row * (len(self._drawn) + 1) + self._pad
        self.height += self.height % 2
        time_width = self._text.width(f"{_clock(self._duration)} / {_clock(self._duration)}")
        widest = max((self._text.width(lane.label) for lane, _ in self._drawn), default=0)
        self._left = min(max(time_width, min(widest, round(0.3 * width))) + 2 * self._pad, round(0.6 * width))
        self._lane_of_span = np.repeat(np.arange(len(lanes)), [len(lane.spans) for lane in lanes])
        self._spans = np.array([span for lane in lanes for span in lane.spans], np.float64).reshape(-1, 3)
        self._panels: dict[tuple[tuple[int, str], ...], NDArray[np.uint8]] = {}
        self._clock: tuple[str, NDArray[np.uint8]] = ("", self._bar)

    def _choose_lanes(self, room: int) -> list[tuple[Lane, tuple[int, int, int]]]:
        """Choose the timeline's lanes, with their colors; segments without room share the last lane."""
        by_weight = sorted(range(len(self._lanes)), key=lambda i: -self._lanes[i].weight)
        own = sorted(by_weight if len(by_weight) <= room else by_weight[: room - 1])
        drawn = [(self._lanes[i], self._colors[i]) for i in own]
        rest = [self._lanes[i] for i in by_weight if i not in own]
        if rest and not rest[0].is_curve:
            spans = tuple(sorted(span for lane in rest for span in lane.spans))
            drawn.append((Lane(label=f"{len(rest)} others", spans=spans, is_curve=False), _OTHERS))
        return drawn

    def draw(self, frame: NDArray[np.uint8], seconds: float) -> NDArray[np.uint8]:
        """Draw names and scores into a frame [H, W, 3] and append the timeline: [height, W, 3]."""
        out = np.empty((self.height, self._width, 3), np.uint8)
        top = self._frame_height
        out[:top], out[top:] = frame, self._bar
        panel = self._panel(seconds)
        if panel is not None:
            high, wide = panel.shape[:2]
            place = out[self._pad : self._pad + high, self._pad : self._pad + wide]
            part = panel[: len(place), :, 3:].astype(np.uint16)
            place[:] = (place * (255 - part) + panel[: len(place), :, :3] * part + 127) // 255
        x = self._x(seconds)
        line = out[self.height - self._row + self._row // 3 : self.height - self._row // 3]
        line[:, self._left : x] = _PLAYED
        thick = max(self._text.size // 8, 2)
        out[top + self._pad // 2 : self.height - self._pad // 2, max(x - thick // 2, 0) : x - thick // 2 + thick] = (
            _WHITE
        )
        clock = self._draw_clock(seconds)
        out[self.height - self._row :, : clock.shape[1]] = clock
        return out

    def _x(self, seconds: float) -> int:
        """The pixel column of a time in the timeline."""
        part = min(max(seconds / self._duration, 0.0), 1.0)
        return self._left + round(part * (self._width - self._pad - self._left - 1))

    @cached_property
    def _bar(self) -> NDArray[np.uint8]:
        """The timeline without its moving parts: playhead and clock."""
        image = Image.new("RGB", (self._width, self.height - self._frame_height), _BACK)
        draw = ImageDraw.Draw(image)
        right = self._width - self._pad
        for i, (lane, color) in enumerate(self._drawn):
            top = self._pad + i * self._row
            bottom = top + self._row - self._pad
            label = self._text.shorten(lane.label, self._left - 2 * self._pad)
            self._text.draw(draw, (self._pad, (top + bottom) // 2), label, _WHITE)
            draw.rectangle((self._left, top, right - 1, bottom - 1), fill=_EMPTY)
            for start, end, score in lane.spans:
                if start >= self._duration:
                    continue
                first, last = self._x(start), max(self._x(end) - 1, self._x(start))
                if lane.is_curve:
                    high = round(min(max(score, 0.0), 1.0) * (bottom - top))
                    if high:
                        draw.rectangle((first, bottom - high, last, bottom - 1), fill=color)
                else:
                    draw.rectangle(
                        (first, top, last, bottom - 1), fill=_blend_colors(_EMPTY, color, 0.35 + 0.65 * score)
                    )
        bottom = image.height
        draw.rectangle(
            (self._left, bottom - self._row + self._row // 3, right - 1, bottom - self._row // 3 - 1), fill=_EMPTY
        )
        return np.asarray(image)

    def _panel(self, seconds: float) -> NDArray[np.uint8] | None:
        """The overlay of current classes and scores, RGBA; None where no class occurs."""
        starts, ends, scores = self._spans.T
        now = np.flatnonzero((starts <= seconds) & (seconds < ends))
        best: dict[int, float] = {}  # of overlapping segments, the highest score
        for lane, score in zip(self._lane_of_span[now].tolist(), scores[now].tolist(), strict=True):
            best[lane] = max(score, best.get(lane, 0.0))
        in_order = sorted(best, key=lambda i: -best[i])
        # A curve covers all classes: name those with some probability, and always the best one.
        named = [i for i in in_order[:_NAMED] if best[i] >= 0.005 or i == in_order[0]]
        shown = tuple((i, f"{best[i]:.2f}") for i in named)
        if not shown:
            return None
        if shown not in self._panels:
            if len(self._panels) > 64:
                self._panels.clear()
            self._panels[shown] = self._draw_panel(shown, len(best))
        return self._panels[shown]

    def _draw_panel(self, shown: Sequence[tuple[int, str]], count: int) -> NDArray[np.uint8]:
        number = self._text.width("0.00")
        room = self._width - 2 * self._pad - number - 3 * self._pad
        labels = [self._text.shorten(self._lanes[i].label, min(room, round(0.7 * self._width))) for i, _ in shown]
        width = max(map(self._text.width, labels)) + number + 4 * self._pad
        if count > len(shown) and not self._lanes[shown[0][0]].is_curve:
            labels.append(f"and {count - len(shown)} more")
        image = Image.new("RGBA", (width, self._row * len(labels)), (0, 0, 0, 165))
        draw = ImageDraw.Draw(image)
        for row, label in enumerate(labels):
            top = row * self._row
            middle = top + self._row // 2
            if row < len(shown):
                i, score = shown[row]
                right = max(round(float(score) * width), 2) - 1
                dark = _blend_colors((0, 0, 0), self._colors[i], 0.6)
                draw.rectangle((0, top + 1, right, top + self._row - 2), fill=(*dark, 215))
                self._text.draw(draw, (width - number - self._pad, middle), score, _WHITE)
            self._text.draw(draw, (self._pad, middle), label, _WHITE)
        return np.asarray(image)

    def _draw_clock(self, seconds: float) -> NDArray[np.uint8]:
        text = f"{_clock(seconds)} / {_clock(self._duration)}"
        if self._clock[0] != text:
            image = Image.new("RGB", (self._left - self._pad, self._row), _BACK)
            shown = self._text.shorten(text, self._left - 2 * self._pad)
            self._text.draw(ImageDraw.Draw(image), (self._pad, self._row // 2), shown, _WHITE)
            self._clock = text, np.asarray(image)
        return self._clock[1]


def _blend_colors(one: tuple[int, int, int], other: tuple[int, int, int], part: float) -> tuple[int, int, int]:
    red, green, blue = (round(a + (b - a) * min(max(part, 0.0), 1.0)) for a, b in zip(one, other, strict=True))
    return red, green, blue


def _clock(seconds: float) -> str:
    """Format a time as "1:02:03.4", or as "2:03.4" below an hour."""
    tenths = int(seconds * 10 + 1e-6)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}:{minutes:02}" if hours else str(minutes)) + f":{tenths // 10:02}.{tenths % 10}"


# -- letters ----------------------------------------------------------------------------------------------------------


class _Text:
    """Measures and draws text of one size, each letter in a font that has it."""

    def __init__(self, size: int) -> None:
        self.size = size

    def width(self, text: str) -> int:
        return round(sum(font.getlength(part) for font, part in self._parts(text)))

    def shorten(self, text: str, width: int) -> str:
        """Shorten the text to a width in pixels by replacing its middle with an ellipsis."""
        text = text[:500]
        if self.width(text) <= width:
            return text
        for kept in range(len(text) - 1, 0, -1):
            shorter = f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
            if self.width(shorter) <= width:
                return shorter
        return "…"

    def draw(self, draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, color: tuple[int, int, int]) -> None:
        """Draw text with its left end, vertically centered, at ``place``."""
        x, y = float(place[0]), place[1]
        for font, part in self._parts(text):
            draw.text((x, y), part, fill=color, font=font, anchor="lm")
            x += font.getlength(part)

    def _parts(self, text: str) -> Iterator[tuple[ImageFont.FreeTypeFont, str]]:
        for file, letters in groupby(text, key=font_file):
            yield _font(file, self.size), "".join(letters)


@cache
def _font(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)
