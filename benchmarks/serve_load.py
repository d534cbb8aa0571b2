"""A server under load: many clients at a time, a tenth of their files broken or hostile.

    python benchmarks/serve_load.py                        # 50 clients, 500 requests, the weights that ship with tada
    python benchmarks/serve_load.py --run runs/first --clients 8 --requests 100 --out load.json

It starts `tada serve` on loopback, with limits that suit short clips, sends generated motion videos, counts the
answers by status, compares those of right files with `Recognizer.predict`, and tells p50 and p95 of the latency and
the memory of the server and of its processes. A client that is told to come again (503) does. At the end it sends
SIGTERM in the middle of requests, which all get their answers.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import av
import numpy as np

from tada.data.motion import write_motion_videos
from tada.recognition.recognizer import load_recognizer

WAIT_SECONDS = 600
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def hostile_files(good: bytes, folder: Path) -> dict[str, bytes]:
    """Files that are wrong in all ways, by the kind of fault."""
    rng = np.random.default_rng(0)
    flipped = bytearray(good)
    for place in rng.integers(len(good) // 4, len(good), 200):
        flipped[place] ^= 0xFF
    huge = folder / "huge.mkv"
    with av.open(str(huge), "w") as container:
        stream = container.add_stream("ffv1", rate=1)
        stream.width = stream.height = 5600
        stream.pix_fmt = "yuv444p"
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((5600, 5600, 3), np.uint8), "rgb24")))
        container.mux(stream.encode(None))
    long = folder / "long.mkv"
    with av.open(str(long), "w") as container:
        stream = container.add_stream("libx264", rate=1)
        stream.width = stream.height = 64
        for second in (0, 18_000, 36_000):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
            frame.pts = second
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return {
        "empty": b"",
        "noise": rng.bytes(100_000),
        "text": b"no video\n" * 1000,
        "playlist": b"#EXTM3U\n#EXTINF:9,\nhttp://127.0.0.1:1/a.ts\nfile:///etc/passwd\n",
        "truncated": good[: len(good) // 2],
        "flipped": bytes(flipped),
        "header alone": good[:40],
        "too large": bytes(12_000_000),
        "heavy frames": huge.read_bytes(),
        "ten hours": long.read_bytes(),
    }


def memory_bytes(pid: int) -> tuple[int, int]:
    """Resident memory of a process, and of all processes below it (shared pages count each time), on Linux."""
    parents, own = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(") ")[2].split()
                own[int(entry.name)] = int((entry / "statm").read_text().split()[1]) * PAGE_BYTES
            except OSError:
                continue
            parents[int(entry.name)] = int(stat[1])
    below, found = {pid}, {pid}
    while below:
        below = {child for child, parent in parents.items() if parent in below} - found
        found |= below
    return own.get(pid, 0), sum(own.get(each, 0) for each in found) - own.get(pid, 0)


def post(port: int, name: str, content: bytes) -> tuple[int, dict[str, Any], int]:
    """Send a video until it is taken; status, answer, and how often the client was told to come again."""
    again = 0
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_SECONDS)
        try:
            head = f'--b\r\nContent-Disposition: form-data; name="video"; filename="{name}"\r\n\r\n'.encode()
            body = head + content + b"\r\n--b--\r\n"
            connection.request("POST", "/predict?top=3", body, {"Content-Type": "multipart/form-data; boundary=b"})
            reply = connection.getresponse()
            answer = json.loads(reply.read())
            if reply.status != 503:
                return reply.status, answer, again
            again += 1
            time.sleep(float(reply.headers["Retry-After"]) * random.random())
        finally:
            connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="tada2d_tiny_motion", help="the model that answers")
    parser.add_argument("--clients", type=int, default=50, help="clients at a time")
    parser.add_argument("--requests", type=int, default=500, help="requests of all clients together")
    parser.add_argument("--out", type=Path, default=None, help="a JSON file for the numbers")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(arguments.run, arguments.clients, arguments.requests, Path(folder))
    print(json.dumps(found, indent=2))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=2) + "\n")


def measure(run: str, num_clients: int, num_requests: int, folder: Path) -> dict[str, Any]:
    """Start a server, send it everything, end it."""
    write_motion_videos(folder / "clips", videos_per_class=3, seed=0, num_frames=24, width=96, height=96)
    good = {file.name: file.read_bytes() for file in sorted((folder / "clips").rglob("*.mp4"))}
    recognizer = load_recognizer(run, device="cpu")
    expected = {file.name: recognizer.predict(file).as_dict(3) for file in sorted((folder / "clips").rglob("*.mp4"))}
    hostile = hostile_files(next(iter(good.values())), folder)
    limits = ["--max-megabytes", "10", "--max-video-seconds", "60", "--max-memory-megabytes", "300"]
    command = [sys.executable, "-m", "tada", "serve", run, "--port", "0", "--device", "cpu", *limits]
    environment = {**os.environ, "TMPDIR": str(folder)}
    program = subprocess.Popen([*command, "--concurrent", "4"], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert program.stdout is not None
        port = int(program.stdout.readline().split("/predict")[0].rpartition(":")[2])
        post(port, "first.mp4", next(iter(good.values())))  # what the first one loads
        before = memory_bytes(program.pid)
        found = _send_all(program.pid, port, good, hostile, expected, num_clients, num_requests)
        found["memory_mb_before"] = [round(part / 1e6) for part in before]
        found["memory_mb_after"] = [round(part / 1e6) for part in memory_bytes(program.pid)]
        found["finished_after_sigterm"] = _end_in_the_middle(program, port, next(iter(good.values())))
        found["files_left"] = [file.name for file in folder.glob("*tada*/**/*") if file.is_file()]
        return found
    finally:
        program.kill()
        program.wait()


def _send_all(
    pid: int,
    port: int,
    good: dict[str, bytes],
    hostile: dict[str, bytes],
    expected: dict[str, Any],
    num_clients: int,
    num_requests: int,
) -> dict[str, Any]:
    wrong_kinds, names = list(hostile), list(good)
    tasks = [
        (wrong_kinds[i // 10 % len(wrong_kinds)], True) if i % 10 == 9 else (names[i % len(names)], False)
        for i in range(num_requests)
    ]
    waiting, lock = list(enumerate(tasks)), threading.Lock()
    latencies: list[float] = []
    statuses: Counter[str] = Counter()
    hostile_answers: dict[str, str] = {}
    faults: list[str] = []
    peaks = [0, 0]
    num_again, largest_difference = 0, 0.0
    is_over = threading.Event()

    def client() -> None:
        nonlocal num_again, largest_difference
        while True:
            with lock:
                if not waiting:
                    return
                _, (name, is_hostile) = waiting.pop()
            begin = time.perf_counter()
            try:
                status, answer, again = post(port, name, (hostile if is_hostile else good)[name])
            except Exception as fault:
                with lock:
                    faults.append(f"{name}: {type(fault).__name__}: {fault}")
                continue
            seconds = time.perf_counter() - begin
            with lock:
                num_again += again
                latencies.append(seconds)
                statuses[f"{'hostile' if is_hostile else 'good'} {status}"] += 1
                if is_hostile:
                    hostile_answers[name] = f"{status} {answer.get('detail', 'answered')}"
                elif status == 200 and answer["label"] == expected[name]["label"]:
                    scores = expected[name]["scores"]
                    differences = [abs(answer["scores"][label] - scores[label]) for label in scores]
                    largest_difference = max(largest_difference, *differences)
                else:
                    faults.append(f"{name}: {status} {answer}")

    def watch() -> None:
        while not is_over.wait(0.5):
            for i, part in enumerate(memory_bytes(pid)):
                peaks[i] = max(peaks[i], part)

    threads = [threading.Thread(target=client) for _ in range(num_clients)]
    watcher = threading.Thread(target=watch)
    begin = time.perf_counter()
    for thread in (watcher, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begin
    is_over.set()
    watcher.join()
    ordered = sorted(latencies)
    return {
        "clients": num_clients,
        "requests": num_requests,
        "answers": dict(sorted(statuses.items())),
        "faults": faults,
        "told_to_come_again": num_again,
        "largest_difference_of_scores": largest_difference,
        "requests_per_second": round(num_requests / seconds, 2),
        "p50_seconds": round(statistics.median(ordered), 3),
        "p95_seconds": round(ordered[int(0.95 * (len(ordered) - 1))], 3),
        "max_seconds": round(ordered[-1], 3),
        "memory_mb_peak": [round(part / 1e6) for part in peaks],
        "hostile": hostile_answers,
    }


def _end_in_the_middle(program: subprocess.Popen[str], port: int, content: bytes) -> dict[str, Any]:
    """Send requests, and SIGTERM before they are answered; the answers, and the exit code."""
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(post(port, "last.mp4", content)[0])) for _ in range(8)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_SECONDS)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        count = float(text.split("\ntada_requests ")[1].split()[0])
        if count + len(found) >= len(threads):
            break
    program.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(WAIT_SECONDS)
    return {"running": len(threads), "answers": sorted(found), "exit_code": program.wait(WAIT_SECONDS)}


if __name__ == "__main__":
    main()
