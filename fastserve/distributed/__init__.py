"""Device groups: who holds what, the processes that drive devices, and how they meet.

`import fastserve.distributed` makes torch know the backend "fastserve", before or after torch itself is imported.
"""

from fastserve.distributed.registration import register_when_torch_comes

register_when_torch_comes()
