"""Wait until a Ray cluster has all its nodes: `python -m skiff.train.ray_nodes ADDRESS NODES
SECONDS`. Exits with 0 then; else with a sentence and 3. A process of its own: Ray leaves threads.
"""

from __future__ import annotations

import sys
import time

import ray

POLL_SECONDS = 0.5


def main() -> None:
    """The program."""
    address, nodes, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    deadline = time.monotonic() + seconds
    ray.init(address=address, log_to_driver=False)
    while (alive := sum(node["Alive"] for node in ray.nodes())) < nodes:
        if time.monotonic() > deadline:
            print(f"error: {alive} of {nodes} nodes have joined Ray within {seconds:g} s")
            sys.exit(3)
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    main()
