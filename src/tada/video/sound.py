"""Copy the sound of a video into another file at its times: AAC unchanged, other codecs encoded as AAC.

Times count from the container's start, as those of the reader's frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from typing import Any

import av
import av.error
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.filter import Graph

from tada.video.container import Limits, MediaFile

# Sample rates of AAC, in Hz.
_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
_BIT_RATE = 128_000  # for two channels
_LATE_SECONDS = 0.001  # later sound needs silence before it


class Sound:
    """The first audio stream of a video file. To be closed by the caller.

    It is read step by step, along with the frames that are written.

    Attributes:
        codec: FFmpeg's name of it, "unknown" if FFmpeg has no decoder; None if the file has no sound.
        start_seconds: when it starts; None if the file has no sound that can be decoded.
    """

    codec: str | None = None
    start_seconds: float | None = None

    def __init__(self, path: str, limits: Limits) -> None:
        self._file = MediaFile(path, limits)
        self._packets: Iterator[av.Packet[Any]] = iter(())
        try:
            streams = self._file.container.streams.audio
            if streams:
                context = streams[0].codec_context
                self.codec = "unknown" if context is None else context.name
                if context is not None:
                    self._open(streams[0])
        except BaseException:
            self.close()
            raise

    def _open(self, stream: AudioStream) -> None:
        self._stream = stream
        packets = (packet for packet in self._file.packets(stream) if packet.pts is not None)
        first = next(packets, None)
        if first is None or stream.time_base is None:
            return
        self._packets = chain([first], packets)
        ticks = first.pts if stream.start_time is None else stream.start_time
        assert ticks is not None
        start = float(ticks * stream.time_base - self._file.start)
        if stream.codec_context.name == "aac" or self._start_decoding():
            self.start_seconds = start

    def _start_decoding(self) -> bool:
        """Decode the first frame and keep an iterator over all. False: no frame can be decoded."""
        frames = self._decode_frames()
        first = next(frames, None)
        if first is None:
            return False
        self._first_frame, self._decoded = first, chain([first], frames)
        return True

    def _decode_frames(self) -> Iterator[av.AudioFrame]:
        """Decode the packets; those that cannot be decoded leave a gap."""
        for packet in chain(self._packets, [None]):
            try:
                yield from (frame for frame in self._stream.codec_context.decode(packet) if frame.pts is not None)
            except av.error.FFmpegError:
                continue

    def add_to(self, container: OutputContainer, *, from_zero: bool) -> None:
        """Add an audio stream to the container, before any packet is written; ``write_until`` fills it.

        Args:
            from_zero: start the stream at 0, with silence if needed, so that players count times from there.
        """
        self._container, self._from_zero = container, from_zero
        assert self.start_seconds is not None
        starts_late = from_zero and self.start_seconds > _LATE_SECONDS
        if self._stream.codec_context.name == "aac" and not (starts_late and self._start_decoding()):
            self._target = container.add_stream_from_template(self._stream)
            self._rate = self._stream.codec_context.sample_rate or _RATES[0]
            self._output = self._copy_packets()
            return
        rate = self._first_frame.sample_rate if self._first_frame.sample_rate in _RATES else 48000
        layout = "mono" if self._first_frame.layout.nb_channels == 1 else "stereo"
        self._target = container.add_stream("aac", rate=rate, layout=layout)
        self._target.codec_context.bit_rate = _BIT_RATE // (2 if layout == "mono" else 1)
        self._output = self._encode_frames()

    def write_until(self, seconds: float) -> None:
        """Write the packets up to a time in the new file; ``math.inf``: all remaining ones."""
        for packet in self._output:
            self._container.mux(packet)
            if packet.pts is not None and float(packet.pts * packet.time_base) >= seconds:
                return

    def _copy_packets(self) -> Iterator[av.Packet[Any]]:
        """Shift the packets to the new file's clock; skip those whose times go back, as in a damaged file."""
        last = -math.inf
        for packet in self._packets:
            assert packet.pts is not None
            assert packet.time_base is not None
            samples = round((packet.pts if packet.dts is None else packet.dts) * packet.time_base * self._rate)
            if samples <= last:
                continue
            last = samples
            origin = self._start_ticks(packet.time_base)
            packet.pts -= origin
            if packet.dts is not None:
                packet.dts -= origin
            packet.stream = self._target
            yield packet

    def _encode_frames(self) -> Iterator[av.Packet[Any]]:
        """Encode the sound as AAC, with silence in its gaps."""
        graph, form = None, (0, "", "")
        for frame in self._decoded:
            if graph is None or form != (frame.sample_rate, frame.layout.name, frame.format.name):
                if graph is not None:
                    yield from self._filter_and_encode(graph, None)
                graph, form = self._make_graph(frame), (frame.sample_rate, frame.layout.name, frame.format.name)
            assert frame.pts is not None
            assert frame.time_base is not None
            frame.pts -= self._start_ticks(frame.time_base)
            yield from self._filter_and_encode(graph, frame)
        if graph is not None:
            yield from self._filter_and_encode(graph, None)
        yield from self._target.encode(None)

    def _start_ticks(self, time_base: Fraction) -> int:
        """The container's start, counted in ``time_base``."""
        return round(self._file.start / time_base)

    def _make_graph(self, frame: av.AudioFrame) -> Graph:
        """Make a filter graph that resamples frames of this format for the encoder."""
        encoder = self._target.codec_context
        graph = Graph()
        nodes = [
            graph.add_abuffer(
                sample_rate=frame.sample_rate,
                format=frame.format.name,
                layout=frame.layout.name,
                time_base=frame.time_base,
            ),
            graph.add("aresample", "async=1:first_pts=0" if self._from_zero else "async=1"),  # fills gaps
            graph.add(
                "aformat",
                f"sample_fmts={encoder.format.name}:sample_rates={encoder.sample_rate}"
                f":channel_layouts={encoder.layout.name}",
            ),
            graph.add("abuffersink"),
        ]
        graph.link_nodes(*nodes).configure()
        graph.set_audio_frame_size(encoder.frame_size or 1024)
        return graph

    def _filter_and_encode(self, graph: Graph, frame: av.AudioFrame | None) -> Iterator[av.Packet[Any]]:
        """Pass a frame through filter graph and encoder; None flushes the graph."""
        graph.push(frame)
        while True:
            try:
                ready = graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            assert isinstance(ready, av.AudioFrame)
            yield from self._target.encode(ready)

    def close(self) -> None:
        """Close the file. May be called twice."""
        self._file.close()
