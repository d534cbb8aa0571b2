"""How long a test waits for a process of its own before it takes it for hung.

No measure of speed: on a machine that is busy with other things a start alone may take a minute. It only keeps a test
from waiting for ever.
"""

HANG_SECONDS = 1500
