"""Looking into a cluster from outside a job, and killing its actors."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.integration.ray_head import RayHead

WATCH = """
import json, sys, ray
from ray.util.state import list_actors, list_placement_groups
ray.init(address=sys.argv[1], namespace=sys.argv[2], log_to_driver=False)
for line in sys.stdin:
    for name in line.split():
        ray.kill(ray.get_actor(name), no_restart=False)
    actors = [a for a in list_actors(detail=True, limit=1000) if a.ray_namespace == sys.argv[2] and a.state == "ALIVE"]
    print(json.dumps({"actors": {a.name: [a.repr_name, a.pid] for a in actors},
                      "groups": [g.name for g in list_placement_groups()],
                      "metrics": [f"http://{n['NodeManagerAddress']}:{n['MetricsExportPort']}/metrics" for n in ray.nodes()],
                     }), flush=True)
"""
"""Kills the actors named on a line, and then tells what there is."""


@contextmanager
def watcher(head: RayHead, namespace: str) -> Iterator:
    """A function that kills the actors it is given, at once, and returns what `WATCH` tells."""
    command = [sys.executable, "-c", WATCH, head.gcs_address, namespace]
    with subprocess.Popen(command, env=head.driver_env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout

        def kill(*names: str) -> dict:
            print(*names, file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())

        yield kill
        process.stdin.close()
