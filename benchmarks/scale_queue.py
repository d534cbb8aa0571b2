"""A cluster that reads many videos, as a queue: a discrete-event simulation of `tada predict` and `extract` with Ray.

A video is fetched whole to the disk of a node, decoded there by a process, goes with others as a batch into a network
anywhere in the cluster, and its row goes to the driver, which writes shards. Between these stages are buffers of
limited size; a worker whose result finds the next buffer full keeps it and waits (back-pressure). Nodes are killed and
come back, decoders crash, the driver is killed and goes on from the shards that are written. What is lost is done
again.

Events are in a heap by time. Every event of a worker carries the incarnation of its node; a kill raises the node's, so
that events of work that is lost are recognized when their time comes.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from scale_cluster import ATTEMPTS, Cluster, Faults, Nodes, Work

# Where a video is, if not on a node, whose index it would be:
NOWHERE, WITH_DRIVER, WRITTEN = -1, -2, -3


@dataclass(slots=True)
class Node:
    """A machine while it runs; the driver is one, too."""

    index: int
    kind: Nodes
    incarnation: int = 0
    is_up: bool = True
    free_fetches: int = 0
    free_decoders: int = 0
    fetched: deque[tuple[int, float]] = field(default_factory=deque)
    """Videos on its disk, and since when."""
    full_fetches: deque[tuple[int, float]] = field(default_factory=deque)
    """Fetched, without room among ``fetched``."""

    def clear(self) -> None:
        """All its workers are free and its disk is empty."""
        self.free_fetches, self.free_decoders = self.kind.fetches, self.kind.decoders
        self.fetched.clear()
        self.full_fetches.clear()


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What happened."""

    seconds: float
    """From the beginning to the last shard."""
    times_written: list[int]
    """Of each video; 1, if all is well."""
    faulty: int
    """Rows with a fault: unreadable, or set aside."""
    files: int
    kills: Counter[str]
    """Of "node", "driver" and "decoder"."""
    spent_seconds: dict[str, float]
    """Of all workers of a stage, lost work included."""
    decode_needed_seconds: float
    """Of all videos, each decoded once."""
    mean_wait_seconds: dict[str, float]
    """In front of a stage."""
    received: list[tuple[float, int]]
    """The times at which the driver had received a batch, and how many rows it then had."""

    @property
    def sustained_rate(self) -> float:
        """Rows a second between a fifth and four fifths of all: without the beginning and the end."""
        all_rows = len(self.times_written)
        first, last = (next(entry for entry in self.received if entry[1] >= all_rows * part) for part in (0.2, 0.8))
        return (last[1] - first[1]) / (last[0] - first[0])

    @property
    def decoded_again(self) -> float:
        """Decoding that was lost, as a share of what was needed."""
        return self.spent_seconds["decode"] / self.decode_needed_seconds - 1


class Simulation:
    """One run of a cluster over all videos. Equal seeds give equal runs."""

    def __init__(self, cluster: Cluster, work: Work, faults: Faults | None = None, *, seed: int) -> None:
        self.cluster, self.work, self.faults = cluster, work, faults or Faults()
        if work.arrivals_per_second and self.faults.driver_kills_per_hour:
            raise ValueError("a driver that is killed begins with all videos: they cannot still arrive one by one")
        self.random = Random(seed)
        self.now = 0.0
        self.events: list[tuple[float, int, str | None, Callable[..., None], Any, int, float, Any]] = []
        self.num_events = 0
        kinds = [kind for kind in cluster.nodes for _ in range(kind.count)]
        self.nodes = [Node(index, kind) for index, kind in enumerate(kinds)]
        self.driver = Node(WITH_DRIVER, Nodes(count=1, fetches=0, decoders=0, networks=0))
        self.driver_is_free = True
        self.waiting: deque[int] = deque()
        self.decoded: deque[tuple[int, Node, float]] = deque()
        self.full_decoders: deque[tuple[int, Node, float]] = deque()
        self.free_networks: deque[Node] = deque()
        self.results: deque[tuple[list[int], float]] = deque()
        self.full_networks: deque[tuple[Node, list[int], float]] = deque()
        self.shard: list[int] = []
        # Of each video
        self.decode_seconds = [work.decode(self.random) for _ in range(work.videos)]
        self.is_unreadable = [self.random.random() < self.faults.unreadable for _ in range(work.videos)]
        self.is_killer = [self.random.random() < self.faults.killers for _ in range(work.videos)]
        self.place = [NOWHERE] * work.videos
        self.crashes = [0] * work.videos
        self.times_written = [0] * work.videos
        # What is counted
        self.num_written = self.files = 0
        self.received: list[tuple[float, int]] = []
        self.end: float | None = None
        self.killed_at: dict[tuple[int, int], float] = {}
        self.kills: Counter[str] = Counter()
        self.spent: dict[str, float] = defaultdict(float)
        self.waits: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])

    def run(self) -> Outcome:
        """Handle events until all rows are written."""
        for node in self.nodes:
            self._start(node)
            self._plan_kill(node)
        if self.faults.driver_kills_per_hour:
            self._at(self._until(self.faults.driver_kills_per_hour / 3600), self._kill_driver)
        if self.work.arrivals_per_second is None:
            self.waiting.extend(range(self.work.videos))
            self._feed_all()
        else:
            self._at(self._until(self.work.arrivals_per_second), self._arrive, 0)
        while self.end is None:
            self.now, _, stage, done, node, incarnation, started, what = heapq.heappop(self.events)
            if stage is None:
                done(what)
            elif node.incarnation != incarnation:  # lost: the worker was killed meanwhile
                self.spent[stage] += self.killed_at[node.index, incarnation] - started
            else:
                self.spent[stage] += self.now - started
                done(node, what)
        return Outcome(
            seconds=self.end,
            times_written=self.times_written,
            faulty=sum(map(self._is_faulty, range(self.work.videos))),
            files=self.files,
            kills=self.kills,
            spent_seconds=dict(self.spent),
            decode_needed_seconds=sum(self.decode_seconds),
            mean_wait_seconds={stage: total / count for stage, (count, total) in self.waits.items()},
            received=self.received,
        )

    def _at(self, seconds: float, do: Callable[[Any], None], what: Any = None) -> None:
        """Do something that is no worker's after so many seconds."""
        self._push(seconds, None, do, None, what)

    def _serve(self, stage: str, seconds: float, done: Callable[[Node, Any], None], node: Node, what: Any) -> None:
        """Let a worker of a node work for so many seconds."""
        self._push(seconds, stage, done, node, what)

    def _push(self, seconds: float, stage: str | None, do: Callable[..., None], node: Node | None, what: Any) -> None:
        self.num_events += 1  # it also decides between events of the same time
        incarnation = node.incarnation if node else 0
        heapq.heappush(self.events, (self.now + seconds, self.num_events, stage, do, node, incarnation, self.now, what))

    def _until(self, per_second: float) -> float:
        return round(self.random.expovariate(per_second), 7)  # the same on every platform

    def _waited(self, stage: str, since: float) -> None:
        entry = self.waits[stage]
        entry[0] += 1
        entry[1] += self.now - since

    def _is_faulty(self, video: int) -> bool:
        return self.is_unreadable[video] or self.crashes[video] >= ATTEMPTS

    # The stages, in the order of a video's way. "feed" gives work to free workers.

    def _arrive(self, video: int) -> None:
        assert self.work.arrivals_per_second is not None
        self.waiting.append(video)
        if video + 1 < self.work.videos:
            self._at(self._until(self.work.arrivals_per_second), self._arrive, video + 1)
        self._feed_all()

    def _feed_all(self) -> None:
        for node in self.nodes:
            self._feed(node)

    def _feed(self, node: Node) -> None:
        """Decoders first: they make room for files."""
        while node.free_decoders and node.fetched:
            video, since = node.fetched.popleft()
            if node.full_fetches:
                node.fetched.append(node.full_fetches.popleft())
                node.free_fetches += 1
            self._waited("decode", since)
            node.free_decoders -= 1
            seconds = self.decode_seconds[video]
            if self.is_killer[video] or (self.faults.crash and self.random.random() < self.faults.crash):
                self._serve("decode", seconds / 2 + self.faults.restart_seconds, self._decoder_died, node, video)
            else:
                self._serve("decode", seconds, self._decoder_is_done, node, video)
        while node.is_up and node.free_fetches and self.waiting:
            video = self.waiting.popleft()
            self.place[video] = node.index
            node.free_fetches -= 1
            self._serve("fetch", self.work.fetch(self.random), self._fetch_is_done, node, video)

    def _fetch_is_done(self, node: Node, video: int) -> None:
        if len(node.fetched) < self.cluster.fetched_buffer or node.free_decoders:
            node.fetched.append((video, self.now))
            node.free_fetches += 1
        else:
            node.full_fetches.append((video, self.now))
        self._feed(node)

    def _decoder_died(self, node: Node, video: int) -> None:
        self.kills["decoder"] += 1
        self.crashes[video] += 1
        if self._is_faulty(video):
            self._decoder_is_done(node, video)
            return
        node.free_decoders += 1
        node.fetched.append((video, self.now))  # its file is on the disk
        self._feed(node)

    def _decoder_is_done(self, node: Node, video: int) -> None:
        self.full_decoders.append((video, node, self.now))
        self._move_decoded()
        self._feed_networks()
        self._feed(node)

    def _move_decoded(self) -> None:
        """Into the buffer, as far as there is room; the decoders are free then."""
        while self.full_decoders and len(self.decoded) < self.cluster.decoded_buffer:
            decoded = self.full_decoders.popleft()
            self.decoded.append(decoded)
            decoded[1].free_decoders += 1

    def _feed_networks(self) -> None:
        while self.decoded and self.free_networks:
            node = self.free_networks.popleft()
            batch, freed = [], {}
            while self.decoded and len(batch) < self.cluster.batch:
                video, _, since = self.decoded.popleft()
                self._waited("network", since)
                self.place[video] = node.index
                batch.append(video)
                if self.full_decoders:
                    home = self.full_decoders[0][1]
                    freed[home.index] = home
                    self._move_decoded()
            readable = sum(not self._is_faulty(video) for video in batch)
            self._serve("network", self.work.network(readable), self._network_is_done, node, batch)
            for home in freed.values():
                self._feed(home)

    def _network_is_done(self, node: Node, batch: list[int]) -> None:
        self.full_networks.append((node, batch, self.now))
        self._move_results()
        self._feed_driver()
        self._feed_networks()

    def _move_results(self) -> None:
        """To the driver, as far as there is room; the networks are free then."""
        while self.full_networks and len(self.results) < self.cluster.results_buffer:
            node, batch, since = self.full_networks.popleft()
            self.results.append((batch, since))
            self.free_networks.append(node)
            for video in batch:
                self.place[video] = WITH_DRIVER

    def _feed_driver(self) -> None:
        if self.driver_is_free and self.results:
            batch, since = self.results.popleft()
            self._waited("driver", since)
            self._move_results()
            self.driver_is_free = False
            writes = len(self.shard) + len(batch) >= self.cluster.shard_videos
            seconds = self.work.driver_batch_seconds + writes * self.work.shard_seconds
            self._serve("driver", seconds, self._driver_is_done, self.driver, batch)

    def _driver_is_done(self, _: Node, batch: list[int]) -> None:
        self.shard += batch
        self.received.append((self.now, self.num_written + len(self.shard)))
        self.driver_is_free = True
        is_full = len(self.shard) >= self.cluster.shard_videos  # then its seconds were part of this batch's
        is_last = self.num_written + len(self.shard) == self.work.videos
        if is_last or is_full:
            for video in self.shard:
                assert self.place[video] == WITH_DRIVER
                self.place[video] = WRITTEN
                self.times_written[video] += 1
            self.num_written += len(self.shard)
            self.files += 1
            self.shard = []
        if is_last:
            self.end = self.now + (not is_full) * self.work.shard_seconds
        self._feed_driver()
        self._feed_networks()

    # What goes wrong

    def _start(self, node: Node) -> None:
        node.is_up = True
        node.clear()
        self.free_networks.extend([node] * node.kind.networks)

    def _plan_kill(self, node: Node) -> None:
        if self.faults.node_kills_per_hour:
            self._at(self._until(self.faults.node_kills_per_hour / 3600), self._kill_node, node)

    def _stop(self, node: Node) -> None:
        """What its workers do is lost."""
        self.killed_at[node.index, node.incarnation] = self.now
        node.incarnation += 1
        node.clear()

    def _kill_node(self, node: Node) -> None:
        self.kills["node"] += 1
        self._stop(node)
        node.is_up = False
        node.free_fetches = node.free_decoders = 0
        self.free_networks = deque(other for other in self.free_networks if other is not node)
        self.decoded = deque(entry for entry in self.decoded if self.place[entry[0]] != node.index)
        self.full_decoders = deque(entry for entry in self.full_decoders if entry[1] is not node)
        self.full_networks = deque(entry for entry in self.full_networks if entry[0] is not node)
        lost = [video for video, place in enumerate(self.place) if place == node.index]
        for video in lost:
            self.place[video] = NOWHERE
        self.waiting.extendleft(reversed(lost))
        self._at(self.faults.node_back_seconds, self._node_is_back, node)
        self._move_decoded()
        self._feed_networks()
        self._feed_all()

    def _node_is_back(self, node: Node) -> None:
        self._start(node)
        self._plan_kill(node)
        self._feed(node)
        self._feed_networks()

    def _kill_driver(self, _: None) -> None:
        """All processes end; after a pause, what is in no shard is begun anew."""
        self.kills["driver"] += 1
        for node in [*self.nodes, self.driver]:
            self._stop(node)
            if not node.is_up:
                node.free_fetches = node.free_decoders = 0
        for buffer in (self.waiting, self.decoded, self.full_decoders, self.results, self.full_networks, self.shard):
            buffer.clear()
        self.free_networks = deque(node for node in self.nodes if node.is_up for _ in range(node.kind.networks))
        self.place = [place if place == WRITTEN else NOWHERE for place in self.place]
        self.driver_is_free = True
        self._at(self.faults.driver_back_seconds, self._driver_is_back)

    def _driver_is_back(self, _: None) -> None:
        self.waiting.extend(video for video, place in enumerate(self.place) if place == NOWHERE)
        self._feed_all()
        self._at(self._until(self.faults.driver_kills_per_hour / 3600), self._kill_driver)
