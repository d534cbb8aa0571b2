"""A ``sitecustomize`` that notes each socket that is connected and each file that is opened for writing."""

from __future__ import annotations

WATCHER = """
import os, socket, sys
log = os.open(os.environ["WATCH_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def watch(event, details):
    found = ""
    if event in ("socket.connect", "socket.sendto", "socket.bind"):
        if details[0].family != socket.AF_UNIX:
            found = f"socket {event} {details[1]!r}"
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "urllib.Request", "http.client.connect"):
        found = f"socket {event} {details[:2]!r}"
    elif event == "open" and isinstance(details[0], (str, bytes)) and details[2] & (os.O_WRONLY | os.O_RDWR):
        found = f"write {os.path.abspath(os.fsdecode(details[0]))}"
    elif event == "os.mkdir":
        found = f"write {os.path.abspath(os.fsdecode(details[0]))}"
    if found:
        os.write(log, (found + chr(10)).encode())

sys.addaudithook(watch)
"""
