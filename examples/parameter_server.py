"""A parameter server: a neural network learns on several machines, in step or out of step.

                       ┌── weights ──▶ worker 1 (its own part of the data) ── gradient ──┐
    parameter server ──┼── weights ──▶ worker 2 (its own part of the data) ── gradient ──┼──▶ parameter server
                       └── …                                                             ┘

One actor holds the weights. Each worker is an actor that makes its part of the data where it lives, takes weights
and gives back the gradient on its next batch. Weights and gradients are numpy arrays that travel as objects, straight
between the two actors; the driver only passes references on.

* sync: in each round all workers start from the same weights, and the server adds their mean gradient. The result
  does not depend on which machine was quicker: the same seed learns the same.
* async: whoever is done goes on with the latest weights. Nobody waits for the slowest, and gradients are a
  little out of date.

    python examples/parameter_server.py                      on this machine, or on your latest cluster if there is one
    python examples/parameter_server.py --nodes 3            three nodes, started here for as long as it runs
    python examples/parameter_server.py --address HOST:PORT  on that cluster
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from contextlib import ExitStack
from typing import Any

import numpy as np

import minray as ray
from minray.cluster_utils import Cluster

FEATURES, CLASSES = 10, 5
Array = Any  # numpy's arrays


# --- the data and the network: plain numpy --------------------------------------------------------------


def make_data(rows: int, seed: int) -> tuple[Array, Array]:
    """Points in space, and to which of five bent regions each belongs: (rows, FEATURES), (rows,)."""
    teacher = np.random.default_rng(0)  # the same regions for everybody
    bend = teacher.normal(size=(FEATURES, 6)), teacher.normal(size=(6, CLASSES))
    points = np.random.default_rng(seed).normal(size=(rows, FEATURES))
    return points, np.argmax(np.tanh(points @ bend[0] / 2) @ bend[1], axis=1)


class Network:
    """One hidden layer, one vector of weights: what it says and how it should change."""

    def __init__(self, hidden: int) -> None:
        self.shapes = [(FEATURES, hidden), (hidden,), (hidden, CLASSES), (CLASSES,)]

    def first_weights(self, seed: int = 0) -> Array:
        random = np.random.default_rng(seed)
        return np.concatenate([random.normal(size=shape).ravel() / np.sqrt(shape[0]) for shape in self.shapes])

    def parts(self, weights: Array) -> list[Array]:
        ends = np.cumsum([np.prod(shape) for shape in self.shapes])
        return [part.reshape(shape) for part, shape in zip(np.split(weights, ends[:-1]), self.shapes, strict=True)]

    def forward(self, weights: Array, points: Array) -> tuple[Array, Array]:
        """The hidden layer, and the probability of each class."""
        w1, b1, w2, b2 = self.parts(weights)
        hidden = np.maximum(points @ w1 + b1, 0)
        scores = hidden @ w2 + b2
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return hidden, powers / powers.sum(axis=1, keepdims=True)

    def gradient(self, weights: Array, points: Array, labels: Array) -> Array:
        """Of the mean cross-entropy, as one vector like ``weights``."""
        hidden, wrong = self.forward(weights, points)
        wrong[np.arange(len(labels)), labels] -= 1
        wrong /= len(labels)
        back = (wrong @ self.parts(weights)[2].T) * (hidden > 0)
        parts = points.T @ back, back.sum(axis=0), hidden.T @ wrong, wrong.sum(axis=0)
        return np.concatenate([part.ravel() for part in parts])

    def accuracy(self, weights: Array, points: Array, labels: Array) -> float:
        _, chances = self.forward(weights, points)
        return float(np.mean(np.argmax(chances, axis=1) == labels))


# --- on the cluster ---------------------------------------------------------------------------------------


@ray.remote
class ParameterServer:
    """Holds the weights, and changes them by the gradients that it is given."""

    def __init__(self, network: Network, rate: float) -> None:
        self.weights = network.first_weights()
        self.speed = np.zeros_like(self.weights)
        self.rate = rate

    def apply(self, *gradients: Array) -> Array:
        """One step along their mean, with momentum; the new weights."""
        self.speed = 0.9 * self.speed - self.rate * np.mean(gradients, axis=0)
        self.weights = self.weights + self.speed
        return self.weights

    def read(self) -> Array:
        return self.weights


@ray.remote(scheduling_strategy="SPREAD")
class Worker:
    """Has a part of the data, and knows the gradient there."""

    def __init__(self, network: Network, number: int, rows: int, batch: int) -> None:
        self.network, self.batch, self.turn = network, batch, 0
        self.points, self.labels = make_data(rows, seed=1 + number)

    def gradient(self, weights: Array) -> Array:
        """On the next batch of its data."""
        first = self.turn * self.batch % len(self.points)
        self.turn += 1
        chosen = slice(first, first + self.batch)
        return self.network.gradient(weights, self.points[chosen], self.labels[chosen])

    def node(self) -> str:
        return str(ray.get_runtime_context().get_node_id())


def run_sync(server: Any, workers: list[Any], rounds: int) -> None:
    weights = server.read.remote()
    for _ in range(rounds):
        gradients = [worker.gradient.remote(weights) for worker in workers]
        weights = server.apply.remote(*gradients)  # references: nothing of it comes here
    ray.wait([weights])


def run_async(server: Any, workers: list[Any], rounds: int) -> None:
    """As many gradients as in as many rounds in step."""
    busy = {worker.gradient.remote(server.read.remote()): worker for worker in workers}
    for _ in range(rounds * len(workers)):
        [gradient], _ = ray.wait(list(busy))
        worker = busy.pop(gradient)
        busy[worker.gradient.remote(server.apply.remote(gradient))] = worker
    ray.wait(list(busy), num_returns=len(busy))


def train(mode: str, arguments: argparse.Namespace) -> float:
    """Learn, and print how it goes; the accuracy on data that nobody has learned from, in [0, 1]."""
    network = Network(arguments.hidden)
    rate = arguments.rate if mode == "sync" else arguments.rate / arguments.workers
    server = ParameterServer.options(num_cpus=0).remote(network, rate)
    workers = [
        Worker.options(num_cpus=arguments.cpus_per_worker).remote(network, i, arguments.rows, arguments.batch)
        for i in range(arguments.workers)
    ]
    places = Counter(ray.get([worker.node.remote() for worker in workers]))
    print(f"\n{mode}: {', '.join(f'{n} workers on node {node[:8]}' for node, n in sorted(places.items()))}")
    points, labels = make_data(2000, seed=12345)
    accuracy, done, spent = 0.0, 0, 0.0
    while done < arguments.rounds:
        step = min(arguments.rounds - done, max(1, arguments.rounds // 5))
        begin = time.perf_counter()
        (run_sync if mode == "sync" else run_async)(server, workers, step)
        spent += time.perf_counter() - begin
        done += step
        accuracy = network.accuracy(ray.get(server.read.remote()), points, labels)
        print(f"  after {done:4} rounds: {100 * accuracy:5.1f} % right")
    gradients = arguments.rounds * arguments.workers
    size = network.first_weights().nbytes
    print(f"  {gradients / spent:,.0f} gradients/s, {gradients * arguments.batch / spent:,.0f} rows/s, ", end="")
    print(f"{2 * size * gradients / spent / 1e6:,.1f} MB/s of weights and gradients")
    return accuracy


def main() -> int:
    parser = argparse.ArgumentParser(description="A neural network learns with a parameter server.")
    add = parser.add_argument
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--nodes", type=int, metavar="N", help="start N nodes of 2 CPUs here, for this run")
    where.add_argument("--address", metavar="HOST:PORT", help="of a cluster (default: your latest one, else none)")
    add("--mode", choices=("sync", "async", "both"), default="both", help="in step, out of step (default: both)")
    add("--workers", type=int, default=4, metavar="N", help="how many (default: 4)")
    add("--cpus-per-worker", type=float, default=0.5, metavar="N", help="that each one takes (default: 0.5)")
    add("--rounds", type=int, default=300, metavar="N", help="gradients of each worker (default: 300)")
    add("--rows", type=int, default=8192, metavar="N", help="of data, for each worker (default: 8192)")
    add("--batch", type=int, default=256, metavar="N", help="rows for one gradient (default: 256)")
    add("--hidden", type=int, default=256, metavar="N", help="width of the hidden layer (default: 256)")
    add("--rate", type=float, default=0.1, metavar="X", help="how big a step is (default: 0.1)")
    arguments = parser.parse_args()

    with ExitStack() as stack:
        address = arguments.address
        if arguments.nodes is not None:
            cluster = stack.enter_context(Cluster(initialize_head=True, head_node_args={"num_cpus": 2}))
            for _ in range(arguments.nodes - 1):
                cluster.add_node(num_cpus=2)
            address = cluster.address
        stack.enter_context(ray.init(address))
        print(f"{len(ray.nodes())} nodes with {ray.cluster_resources()['CPU']:g} CPUs", end="")
        modes = ("sync", "async") if arguments.mode == "both" else (arguments.mode,)
        worst = min(train(mode, arguments) for mode in modes)
    print(f"\nguessing would be right in {100 / CLASSES:.0f} %; learned: {worst > 2 / CLASSES}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
