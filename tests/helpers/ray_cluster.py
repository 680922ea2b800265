"""A Ray cluster of two nodes of one CPU each on this machine, until standard input ends: `python ray_cluster.py` prints
its address, and the process id of the second node's raylet. A program of its own, because Ray's threads would not
survive tests' forks."""

import json
import sys

from ray.cluster_utils import Cluster

CONFIG = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}

if __name__ == "__main__":
    options = {"num_cpus": 1, "include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
    cluster = Cluster(True, head_node_args={**options, "_system_config": CONFIG})
    second = cluster.add_node(num_cpus=1)
    print(json.dumps([cluster.address, second.all_processes["raylet"][0].process.pid]), flush=True)
    sys.stdin.read()
    cluster.shutdown()
